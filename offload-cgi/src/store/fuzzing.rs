//! What fuzzers call of the cache's files.

use super::extents::{Extents, ExtentsOf};
use super::record;
use crate::failure::Failure;
use crate::representation::{Representation, hex};
use sha2::{Digest as _, Sha256};

const SOURCE: &str = "http://base.test:80/a";

/// A record says after it was read what it said before it was written.
pub(crate) fn record_is_read_back(found: &Representation) {
    let text = record::print(SOURCE, found);
    let read = record::parse(&text, SOURCE, &found.generation());
    let mut wanted = Representation { age: Default::default(), ..found.clone() };
    wanted.reconsider();
    assert_eq!(read, Ok(wanted));
}

/// Any text, with the right checksum and without.
pub(crate) fn files_are_read(text: &str) {
    for text in [text.to_owned(), format!("{text}sum {}\n", hex(&Sha256::digest(text)))] {
        let _ = record::parse(&text, SOURCE, "0123456789abcdef0123456789abcdef");
        let _ = record::source(&text);
        let _ = Failure::parse(&text);
        for length in [0, 1, 5 << 20, 1 << 43] {
            let of = ExtentsOf { generation: "0123456789abcdef0123456789abcdef", inode: 7, length };
            if let Ok(extents) = Extents::parse(&text, of) {
                assert!(extents.total() <= length);
                assert_eq!(Extents::parse(&extents.print(of), of), Ok(extents));
            }
        }
    }
}
