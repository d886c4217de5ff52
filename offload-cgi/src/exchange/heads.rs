//! What a reply says about a version before its bytes, and between the parts of it.

use std::hash::{BuildHasher as _, RandomState};

use crate::body::Piece;
use crate::http::{EntityTag, Modified, Part, Verdict};
use crate::reply::Reply;
use crate::representation::{DATE, Representation};

/// Content type, length and pieces of a multipart/byteranges body (RFC 9110, section 14.6).
pub(super) fn multipart(record: &Representation, parts: &[Part]) -> (String, u64, Vec<Piece>) {
    // Random, so that nobody can put it into a file.
    let boundary = format!("{:016x}{:016x}", random(), random());
    let content_type = record
        .header("Content-Type")
        .map_or(String::new(), |content_type| format!("Content-Type: {content_type}\r\n"));
    let mut pieces = Vec::with_capacity(parts.len() * 2 + 1);
    let mut length = 0_u64;
    for part in parts {
        let range = part.content_range(record.length);
        let text = format!("\r\n--{boundary}\r\n{content_type}Content-Range: {range}\r\n\r\n");
        length = length.saturating_add(text.len() as u64).saturating_add(part.length);
        pieces.push(Piece::Text(text));
        pieces.push(Piece::Part(*part));
    }
    let end = format!("\r\n--{boundary}--\r\n");
    length = length.saturating_add(end.len() as u64);
    pieces.push(Piece::Text(end));
    (format!("multipart/byteranges; boundary={boundary}"), length, pieces)
}

fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// The head of a reply about a version, as the verdict wants it; the body is still to come. Of several
/// parts, length and type are those of the body that is made of them.
pub(super) fn head<'a>(found: &Representation, verdict: Verdict) -> Reply<'a> {
    let length = found.length;
    let several = matches!(verdict, Verdict::Parts(_));
    let partial = several || matches!(verdict, Verdict::Part(_));
    let not_modified = verdict == Verdict::NotModified;
    let mut reply = match verdict {
        Verdict::Whole => Reply::new(200).header("Content-Length", &length.to_string()),
        Verdict::Part(part) => Reply::new(206)
            .header("Content-Length", &part.length.to_string())
            .header("Content-Range", &part.content_range(length)),
        Verdict::Parts(_) => Reply::new(206),
        Verdict::NotModified => Reply::new(304),
        Verdict::Failed => return Reply::page(412, "The file is another one by now."),
        Verdict::Unsatisfiable => {
            return Reply::page(416, "The file has no such bytes.")
                .header("Content-Range", &format!("bytes */{length}"));
        }
    };
    reply = reply.header("Accept-Ranges", "bytes");
    if let Some(etag) = found.validators.etag.as_ref().map(EntityTag::as_str) {
        reply = reply.header("ETag", etag);
    }
    if let Some(modified) = found.validators.modified.as_ref().map(Modified::as_str) {
        reply = reply.header("Last-Modified", modified);
    }
    for (name, value) in &found.headers {
        // A 304 has no content to describe (RFC 9110, section 15.4.5).
        let of_content = not_modified && name.starts_with("Content-");
        // It is the sum of all that is sent, and so not of a part (RFC 2616, section 14.15).
        let of_whole = partial && *name == "Content-MD5";
        let of_parts = several && *name == "Content-Type";
        if !(of_content || of_whole || of_parts || *name == DATE) {
            reply = reply.header(name, value);
        }
    }
    reply
}
