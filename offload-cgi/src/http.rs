//! What HTTP's validators, ranges and conditions mean: text to values, and values to a verdict.

mod conditions;
mod range;
mod tag;

pub(crate) use self::conditions::{Conditions, Validators, Verdict, judge};
pub(crate) use self::range::{Part, Selection, select};
pub(crate) use self::tag::{EntityTag, Modified, parse_date};
