//! What mod_offload and offload-cgi decide, as functions of plain values.
//!
//! Nothing here knows httpd, a socket, a clock or a thread; time and chance are arguments.
//!
//! | module | the question it answers |
//! | --- | --- |
//! | [`units`] | how much, how long: text to value and back |
//! | [`path`] | which file a URL path means, and how it is spelled in a header |
//! | [`pattern`] | does a wildcard or an address range of the configuration fit |
//! | [`placement`] | which offload host serves a file |
//! | [`setting`] | how a directive's words become a value, and how an inner section overrides |
//! | [`directive`] | the table of directives, and what a section says with them |
//! | [`ledger`] | how many are held now, counted by all processes, whichever of them dies |
//! | [`admission`] | which limits concern a request, and where each counts |
//! | [`limit`] | the values of the limits: numbers, groups of paths, sections |
//! | [`rate`] | how fast a response may go |
//! | [`division`] | who gets how much of the rates that connections share |
//! | [`transfers`] | who is served what, and how fast, by all processes |
//! | [`choke`] | the values of throttling's directives |
//! | [`advice`] | which of httpd's settings stand in the way of many slow downloads |
//! | [`report`] | the state of it all, for people and programs |
//! | [`verdict`] | may this request be offloaded, and why not |
#![forbid(unsafe_code)]

pub mod admission;
pub mod advice;
pub mod choke;
pub mod directive;
pub mod division;
pub mod ledger;
pub mod limit;
pub mod path;
pub mod pattern;
pub mod placement;
pub mod rate;
pub mod report;
pub mod setting;
pub mod transfers;
pub mod units;
pub mod verdict;
