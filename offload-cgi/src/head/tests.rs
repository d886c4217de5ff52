//! What is a head, what is none, and that the way in which bytes arrive does not matter.

use proptest::prelude::*;

use super::*;

/// All heads at the beginning of `bytes`, which arrive in pieces of these sizes, and how it ended: whether with
/// an error, and how many bytes were left.
fn heads(bytes: &[u8], sizes: &[usize]) -> (Vec<Head>, Option<BadHead>, usize) {
    let (mut buffer, mut scan, mut found) = (Vec::new(), Scan::default(), Vec::new());
    let (mut rest, mut sizes) = (bytes, sizes.iter().cycle());
    loop {
        loop {
            match scan.find(&buffer) {
                Ok(Some((head, end))) => {
                    buffer.drain(..end);
                    scan = Scan::default();
                    found.push(head);
                }
                Ok(None) => break,
                Err(error) => return (found, Some(error), buffer.len() + rest.len()),
            }
        }
        if rest.is_empty() {
            return (found, None, buffer.len());
        }
        let size = (*sizes.next().unwrap()).clamp(1, rest.len());
        buffer.extend_from_slice(&rest[..size]);
        rest = &rest[size..];
    }
}

fn one(text: &str) -> Result<Head, BadHead> {
    match Scan::default().find(text.as_bytes()) {
        Ok(Some((head, end))) => {
            assert_eq!(end, text.len(), "{text:?}");
            Ok(head)
        }
        Ok(None) => panic!("no end: {text:?}"),
        Err(error) => Err(error),
    }
}

#[test]
fn a_head_is_read() {
    let head =
        one("GET /a%20b HTTP/1.1\r\nHost: Base.test:80\r\nRange:bytes=0-1 \r\nIf-Range: \"x\"\r\n\
         if_match: y\r\nX: 1\r\nx: 2\r\n\r\n")
        .unwrap();
    assert_eq!((head.method(), head.target(), head.minor()), ("GET", "/a%20b", 1));
    assert_eq!(head.host(), b"Base.test");
    assert_eq!(head.field("range"), Some(&b"bytes=0-1"[..]));
    assert_eq!(head.variable("HTTP_IF_RANGE").as_deref(), Some(&b"\"x\""[..]));
    assert_eq!(head.variable("HTTP_IF_MATCH"), None, "an underscore is no hyphen");
    assert_eq!(head.variable("HTTP_X").as_deref(), Some(&b"1, 2"[..]));
    assert!(head.wants_more() && !head.has_body());
}

#[test]
fn an_absolute_target_names_the_host() {
    for (text, host) in [
        ("GET http://A.test:81/x HTTP/1.1\r\nHost: b.test\r\n\r\n", "A.test"),
        ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "[::1]"),
        ("GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", "[::1]"),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", ""),
        ("GET / HTTP/1.0\r\n\r\n", ""),
    ] {
        assert_eq!(one(text).unwrap().host(), host.as_bytes(), "{text}");
    }
}

#[test]
fn the_connection_goes_on_as_the_client_wants() {
    for (version, fields, more) in [
        (1, "", true),
        (1, "Connection: close\r\n", false),
        (1, "Connection: x, Close\r\n", false),
        (1, "Connection: keep-alive\r\n", true),
        (0, "", false),
        (0, "Connection: Keep-Alive\r\n", true),
        (0, "Connection: close\r\n", false),
    ] {
        let text = format!("GET / HTTP/1.{version}\r\nHost: x\r\n{fields}\r\n");
        assert_eq!(one(&text).unwrap().wants_more(), more, "{text}");
    }
}

#[test]
fn what_follows_a_head_is_known_for_certain_or_refused() {
    for (fields, body) in [
        ("", Some(false)),
        ("Content-Length: 0\r\n", Some(false)),
        ("Content-Length: 000\r\n", Some(false)),
        ("Content-Length: 5\r\n", Some(true)),
        ("Transfer-Encoding: chunked\r\n", Some(true)),
        ("Transfer-Encoding: gzip, chunked\r\n", Some(true)),
        ("Transfer-Encoding: x\r\nTransfer-Encoding: y\r\n", Some(true)),
        ("Content-Length: 0\r\nContent-Length: 0\r\n", None),
        ("Content-Length: 0, 0\r\n", None),
        ("Content-Length: +0\r\n", None),
        ("Content-Length: -1\r\n", None),
        ("Content-Length:\r\n", None),
        ("Content-Length: 0x0\r\n", None),
        ("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", None),
    ] {
        let text = format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        match (one(&text), body) {
            (Ok(head), Some(body)) => assert_eq!(head.has_body(), body, "{text}"),
            (Err(error), None) => assert_eq!(error.status(), 400, "{text}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    }
    let old = "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(one(old).unwrap_err().status(), 400);
}

#[test]
fn what_two_programs_could_read_in_two_ways_is_refused() {
    for (text, status) in [
        ("GET / HTTP/1.1\nHost: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nA: b\0\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nA\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET /\x7f HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET /\r\n\r\n", 400),
        ("G(T / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET / http/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("\x16\x03\x01\x02\0\x01", 400),
    ] {
        match Scan::default().find(text.as_bytes()) {
            Err(error) => assert_eq!(error.status(), status, "{text:?}: {error:?}"),
            found => panic!("{text:?}: {found:?}"),
        }
    }
}

#[test]
fn a_head_has_bounds() {
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(LONGEST_LINE));
    assert_eq!(Scan::default().find(long.as_bytes()), Err(BadHead::LongLine));
    let fits = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(LONGEST_LINE - 100));
    assert!(one(&fits).is_ok());
    let line = format!("A: {}\r\n", "b".repeat(1000));
    let large = format!("GET / HTTP/1.1\r\nHost: x\r\n{}", line.repeat(20));
    assert_eq!(Scan::default().find(large.as_bytes()), Err(BadHead::TooLong));
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(MOST_FIELDS));
    assert_eq!(Scan::default().find(many.as_bytes()), Err(BadHead::TooManyFields));
    let empty = "\r\n".repeat(LONGEST);
    assert_eq!(Scan::default().find(empty.as_bytes()), Err(BadHead::TooLong));
}

#[test]
fn empty_lines_before_a_head_are_skipped() {
    let (found, error, rest) =
        heads(b"\r\n\r\nGET / HTTP/1.0\r\n\r\n\r\nGET /b HTTP/1.0\r\n\r\n", &[1]);
    assert_eq!((found.len(), error, rest), (2, None, 0));
}

prop_compose! {
    /// A head as a careful client writes it.
    fn written()(
        path in "/[a-zA-Z0-9._~%/-]{0,40}",
        minor in 0..=1u8,
        fields in prop::collection::vec(("X-[a-z]{1,8}", "[ -~]{0,20}"), 0..8),
    ) -> (String, String, u8, Vec<(String, String)>) {
        let mut text = format!("GET {path} HTTP/1.{minor}\r\nHost: h\r\n");
        for (name, value) in &fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        (text + "\r\n", path, minor, fields)
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_and_their_pieces_do_not_matter(
        bytes in prop::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), Just(b':'), Just(b' '), Just(0), any::<u8>()], 0..400),
        start in prop_oneof![Just(""), Just("GET / HTTP/1.1\r\n"), Just("GET / HTTP/1.1\r\nHost: x\r\n")],
        sizes in prop::collection::vec(1usize..50, 1..10),
    ) {
        let bytes = [start.as_bytes(), &bytes].concat();
        let (whole, whole_error, _) = heads(&bytes, &[usize::MAX]);
        let (pieces, pieces_error, _) = heads(&bytes, &sizes);
        prop_assert_eq!(whole, pieces);
        prop_assert_eq!(whole_error, pieces_error);
    }

    #[test]
    fn what_is_written_is_read(
        written in prop::collection::vec(written(), 1..5),
        sizes in prop::collection::vec(1usize..200, 1..10),
    ) {
        let text: String = written.iter().map(|(text, ..)| text.as_str()).collect();
        let (found, error, rest) = heads(text.as_bytes(), &sizes);
        prop_assert_eq!((found.len(), error, rest), (written.len(), None, 0));
        for (head, (_, path, minor, fields)) in found.iter().zip(&written) {
            prop_assert_eq!((head.target(), head.minor()), (path.as_str(), *minor));
            for (name, _) in fields {
                let same = fields.iter().filter(|(other, _)| other == name);
                let wanted: Vec<&str> = same.map(|(_, value)| value.trim()).collect();
                let variable = format!("HTTP_{}", name.to_uppercase().replace('-', "_"));
                prop_assert_eq!(head.variable(&variable), Some(wanted.join(", ").into_bytes()));
            }
        }
    }

    /// Where one byte of a head is replaced, there is never a head that ends elsewhere.
    #[test]
    fn a_changed_byte_moves_no_boundary(
        (text, ..) in written(),
        at in any::<prop::sample::Index>(),
        byte: u8,
    ) {
        let mut bytes = text.clone().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(Some((_, end))) = Scan::default().find(&bytes) {
            let naive = bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
            prop_assert_eq!(Some(end), naive);
        }
    }
}
