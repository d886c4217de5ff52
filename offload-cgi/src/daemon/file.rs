//! The configuration file: `key = value` a line, `#` begins a comment line, `[base NAME]` a section.

/// A line that sets something.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    pub(super) line: usize,
    pub(super) key: String,
    pub(super) value: String,
}

/// A section, which is about one base.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Section {
    pub(super) line: usize,
    pub(super) name: String,
    pub(super) entries: Vec<Entry>,
}

/// What a file says: what stands above all sections is in the first, which has no name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Contents {
    pub(super) top: Section,
    pub(super) sections: Vec<Section>,
    /// Line and sentence.
    pub(super) errors: Vec<(usize, String)>,
}

/// Reads a file's text. What cannot be read is an error; the rest is read all the same.
pub(super) fn parse(text: &str) -> Contents {
    let mut contents = Contents::default();
    for (index, line) in text.lines().enumerate() {
        let (number, line) = (index + 1, line.trim());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(inner) = line.strip_prefix('[') {
            let words = inner.strip_suffix(']').and_then(|inner| inner.trim().split_once(' '));
            let name = words.filter(|(kind, _)| *kind == "base").map(|(_, name)| name.trim());
            match name.filter(|name| is_name(name)) {
                None => contents.errors.push((
                    number,
                    format!("'{line}' is no section; use [base NAME], NAME of letters, digits, . _ and -"),
                )),
                Some(name) if contents.sections.iter().any(|section| section.name == name) => {
                    contents.errors.push((number, format!("there is a section [base {name}] already")));
                }
                Some(_) => {}
            }
            contents.sections.push(Section {
                line: number,
                name: name.unwrap_or_default().to_owned(),
                entries: Vec::new(),
            });
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            contents.errors.push((number, format!("'{line}' sets nothing; use key = value")));
            continue;
        };
        let entry =
            Entry { line: number, key: key.trim().to_owned(), value: value.trim().to_owned() };
        contents.sections.last_mut().unwrap_or(&mut contents.top).entries.push(entry);
    }
    contents
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_have_numbers_and_sections() {
        let contents =
            parse("# a comment\nlisten = [::]:80\n\n[base www]\nbase=http://x # not a comment\n");
        assert_eq!(contents.errors, []);
        let entry =
            |line, key: &str, value: &str| Entry { line, key: key.into(), value: value.into() };
        assert_eq!(contents.top.entries, [entry(2, "listen", "[::]:80")]);
        assert_eq!((contents.sections[0].line, contents.sections[0].name.as_str()), (4, "www"));
        assert_eq!(contents.sections[0].entries, [entry(5, "base", "http://x # not a comment")]);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        for (text, line, word) in [
            ("\nlisten", 2, "'listen'"),
            ("[host x]", 1, "[base NAME]"),
            ("[base]", 1, "[base NAME]"),
            ("[base x", 1, "[base NAME]"),
            ("[base x/y]", 1, "[base NAME]"),
            ("[base x]\n[base x]", 2, "already"),
        ] {
            let errors = parse(text).errors;
            assert!(errors[0].0 == line && errors[0].1.contains(word), "{text}: {errors:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]=# a-z\n]{0,100}") {
            parse(&text);
        }
    }
}
