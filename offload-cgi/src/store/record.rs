//! The record of a generation: what the base said about it, as lines of text with a checksum.

use sha2::{Digest as _, Sha256};

use crate::http::{EntityTag, Modified, Validators, parse_date};
use crate::representation::{HEADERS, Representation, hex};

const FIRST_LINE: &str = "offload 1";

/// Spells the record of a version of `source`.
pub(super) fn print(source: &str, representation: &Representation) -> String {
    let validators = &representation.validators;
    let mut lines = vec![FIRST_LINE.to_owned(), format!("source {source}")];
    lines.push(format!("length {}", representation.length));
    if let Some(etag) = &validators.etag {
        lines.push(format!("etag {}", etag.as_str()));
    }
    if let Some(modified) = &validators.modified {
        lines.push(format!("modified {}", modified.as_str()));
    }
    if let Some(answered) = validators.answered {
        lines.push(format!("answered {}", httpdate::fmt_http_date(answered)));
    }
    for (name, value) in &representation.headers {
        lines.push(format!("header {name}: {value}"));
    }
    let text = lines.join("\n") + "\n";
    format!("{text}sum {}\n", sum(&text))
}

/// Where the file of a record comes from, if it says so.
pub(super) fn source(text: &str) -> Option<&str> {
    text.lines().nth(1)?.strip_prefix("source ")
}

/// Reads the record of the generation `name` of `source`.
///
/// # Errors
/// What is wrong with it: it is damaged, or another file's.
pub(super) fn parse(text: &str, source: &str, name: &str) -> Result<Representation, &'static str> {
    let (lines, end) = text.rsplit_once("sum ").ok_or("it has no checksum")?;
    if end.strip_suffix('\n') != Some(&sum(lines)) {
        return Err("its checksum is wrong");
    }
    let mut lines = lines.lines();
    if lines.next() != Some(FIRST_LINE) {
        return Err("it is of another version of this program");
    }
    let mut found_source = None;
    let mut length = None;
    let mut validators = Validators::default();
    let mut headers = Vec::new();
    for line in lines {
        let (word, value) = line.split_once(' ').ok_or("a line makes no sense")?;
        match word {
            "source" => found_source = Some(value),
            "length" => length = value.parse().ok(),
            "etag" => validators.etag = EntityTag::parse(value),
            "modified" => validators.modified = Modified::parse(value),
            "answered" => validators.answered = parse_date(value),
            "header" => {
                let (name, value) = value.split_once(": ").ok_or("a header makes no sense")?;
                let known = HEADERS.iter().find(|known| **known == name);
                headers.push((*known.ok_or("a header is unknown")?, value.to_owned()));
            }
            _ => return Err("a line is unknown"),
        }
    }
    if found_source != Some(source) {
        return Err("it is the record of another file");
    }
    let length = length.ok_or("it has no length")?;
    let mut representation =
        Representation { validators, length, headers, ..Representation::default() };
    representation.reconsider();
    if representation.generation() != name {
        return Err("it is the record of another generation");
    }
    Ok(representation)
}

fn sum(text: &str) -> String {
    hex(&Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SOURCE: &str = "http://base.test:80/a%20b";

    fn version(length: u64, etag: Option<String>, dated: bool, value: String) -> Representation {
        let date = dated.then_some("Sun, 06 Nov 1994 08:49:37 GMT");
        Representation {
            validators: Validators {
                etag: etag.and_then(|etag| EntityTag::parse(&etag)),
                modified: date.and_then(Modified::parse),
                answered: date.and_then(parse_date),
            },
            length,
            headers: vec![("Content-Type", value)],
            ..Representation::default()
        }
    }

    proptest! {
        #[test]
        fn a_record_is_read_back_as_it_was_written(
            length: u64,
            etag in prop::option::of("(W/)?\"[!#-~]{0,40}\""),
            dated: bool,
            value in "[ -~]{0,40}",
        ) {
            let version = version(length, etag, dated, value);
            let text = print(SOURCE, &version);
            prop_assert_eq!(parse(&text, SOURCE, &version.generation()), Ok(version));
        }

        #[test]
        fn a_damaged_record_is_noticed(at in 0usize..200, bit in 0u8..7) {
            let version = version(5, Some("\"v1\"".into()), true, "text/plain".into());
            let mut bytes = print(SOURCE, &version).into_bytes();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            prop_assert!(parse(&text, SOURCE, &version.generation()).is_err());
            bytes.truncate(at);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            prop_assert!(parse(&text, SOURCE, &version.generation()).is_err());
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = parse(&text, SOURCE, "");
        }
    }

    #[test]
    fn a_record_of_another_file_or_generation_is_no_record_of_this_one() {
        let version = version(5, Some("\"v1\"".into()), true, "text/plain".into());
        let text = print(SOURCE, &version);
        let error = parse(&text, "http://base.test:80/other", &version.generation()).unwrap_err();
        assert!(error.contains("another file"), "{error}");
        let error = parse(&text, SOURCE, "0123").unwrap_err();
        assert!(error.contains("another generation"), "{error}");
    }
}
