//! May this request be offloaded, and why not: the checklist.

use std::ffi::CStr;
use std::fmt;
use std::net::IpAddr;

use crate::directive::Layer;
use crate::path::CanonicalPath;
use crate::units::Bytes;

/// What is known of a request when the decision is due, that is, after every other module has had its
/// say about what will answer it.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// It was made by the server itself, to include its answer in another one.
    pub subrequest: bool,
    /// Its answer replaces one that failed (ErrorDocument).
    pub error_document: bool,
    /// GET, and not HEAD.
    pub get: bool,
    /// The client's URL has a `?`, even with nothing behind it.
    pub query: bool,
    /// Credentials are asked for here, or were given.
    pub authentication: bool,
    /// Something other than the file's bytes will be the answer: a handler, PATH_INFO, an include.
    pub dynamic: bool,
    /// The file was chosen for this client, by negotiation or by what identifies it.
    pub varies: bool,
    /// The size of the regular file that the URL leads to.
    pub file: Option<Bytes>,
    /// The client's address, and as the server writes it.
    pub client: Option<IpAddr>,
    /// See `client`.
    pub client_text: &'a [u8],
    /// The client's address is one of an offload host that is named here.
    pub offload_host: bool,
    /// The client sent `X-Mod-Offload-Bypass`: it is an offload host that fetches the file.
    pub bypass: bool,
    /// The content type, parameters and all.
    pub content_type: Option<&'a [u8]>,
    /// The `User-Agent` header.
    pub agent: Option<&'a [u8]>,
    /// What the client's URL means; `None` if different programs would understand it differently.
    pub path: Option<&'a CanonicalPath>,
}

/// Why a request stays on the base.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(missing_docs)] // each variant's sentence is in `sentence`
pub enum Reason {
    EngineOff,
    NoHost,
    Subrequest,
    ErrorDocument,
    NotGet,
    Query,
    Authentication,
    Dynamic,
    Varies,
    NotAFile,
    TooSmall,
    ExcludedAddress,
    OffloadHost,
    Bypass,
    ExcludedType,
    ExcludedAgent,
    Path,
}

impl Reason {
    /// `keep` and the reason in one word: the note that access logs print.
    pub fn note(self) -> &'static CStr {
        match self {
            Self::EngineOff => c"keep engine-off",
            Self::NoHost => c"keep no-host",
            Self::Subrequest => c"keep subrequest",
            Self::ErrorDocument => c"keep error-document",
            Self::NotGet => c"keep not-get",
            Self::Query => c"keep query",
            Self::Authentication => c"keep authentication",
            Self::Dynamic => c"keep dynamic",
            Self::Varies => c"keep varies",
            Self::NotAFile => c"keep not-a-file",
            Self::TooSmall => c"keep too-small",
            Self::ExcludedAddress => c"keep excluded-address",
            Self::OffloadHost => c"keep offload-host",
            Self::Bypass => c"keep bypass",
            Self::ExcludedType => c"keep excluded-type",
            Self::ExcludedAgent => c"keep excluded-agent",
            Self::Path => c"keep path",
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Self::EngineOff => "OffloadEngine is Off here",
            Self::NoHost => "no OffloadHost can be chosen here",
            Self::Subrequest => "it is a part of another answer",
            Self::ErrorDocument => "it is the page for an error",
            Self::NotGet => "the method is not GET",
            Self::Query => "the URL has a query string",
            Self::Authentication => "authentication is required here",
            Self::Dynamic => "the answer is made by a handler, from PATH_INFO or by an include",
            Self::Varies => "the file was chosen for this client (Vary)",
            Self::NotAFile => "there is no regular file",
            Self::TooSmall => "the file is smaller than OffloadMinSize",
            Self::ExcludedAddress => "OffloadExcludeAddress has the client's address",
            Self::OffloadHost => "the client is an offload host",
            Self::Bypass => "the request has X-Mod-Offload-Bypass",
            Self::ExcludedType => "OffloadExcludeMimeType has the content type",
            Self::ExcludedAgent => "OffloadExcludeUserAgent has the User-Agent",
            Self::Path => "the path has no canonical spelling",
        }
    }
}

/// The note's word in brackets behind the sentence, so that a log line can be searched by it.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let note = self.note().to_string_lossy();
        write!(f, "{} ({})", self.sentence(), note.trim_start_matches("keep "))
    }
}

/// Walks the checklist: the first item that fails keeps the request on the base. What passes may be
/// answered with 307 Temporary Redirect to the path's home.
///
/// # Errors
/// The reason why the request stays, as if the module were not there.
pub fn judge<'a>(policy: &Layer, facts: &Facts<'a>) -> Result<&'a CanonicalPath, Reason> {
    if !policy.engine().is_on() {
        return Err(Reason::EngineOff);
    }
    if policy.hosts().is_empty() {
        return Err(Reason::NoHost);
    }
    if facts.subrequest {
        return Err(Reason::Subrequest);
    }
    if facts.error_document {
        return Err(Reason::ErrorDocument);
    }
    if !facts.get {
        return Err(Reason::NotGet);
    }
    if facts.query {
        return Err(Reason::Query);
    }
    if facts.authentication {
        return Err(Reason::Authentication);
    }
    if facts.dynamic {
        return Err(Reason::Dynamic);
    }
    if facts.varies {
        return Err(Reason::Varies);
    }
    let size = facts.file.ok_or(Reason::NotAFile)?;
    if size < policy.min_size() {
        return Err(Reason::TooSmall);
    }
    if policy
        .excluded_addresses()
        .iter()
        .any(|excluded| excluded.matches(facts.client, facts.client_text))
    {
        return Err(Reason::ExcludedAddress);
    }
    if facts.offload_host {
        return Err(Reason::OffloadHost);
    }
    if facts.bypass {
        return Err(Reason::Bypass);
    }
    let content_type = media_type(facts.content_type.unwrap_or_default());
    if policy.excluded_types().iter().any(|excluded| excluded.matches(content_type)) {
        return Err(Reason::ExcludedType);
    }
    if policy
        .excluded_agents()
        .iter()
        .any(|excluded| excluded.matches(facts.agent.unwrap_or_default()))
    {
        return Err(Reason::ExcludedAgent);
    }
    facts.path.ok_or(Reason::Path)
}

/// A content type without its parameters (RFC 9110, section 8.3.1).
pub fn media_type(content_type: &[u8]) -> &[u8] {
    content_type.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii()
}

/// Whether something other than the file's bytes will be the answer.
///
/// `handler` is what httpd would invoke: when nobody chose a handler, it is the content type without
/// its parameters (config.c, `ap_invoke_handler`). Some modules are chosen by such a type, by the
/// convention of their names.
pub fn is_dynamic(handler: Option<&[u8]>, content_type: Option<&[u8]>) -> bool {
    const MAGIC_TYPES: [&[u8]; 3] =
        [b"application/x-httpd-", b"text/x-server-parsed-html", b"httpd/"];
    let content_type = media_type(content_type.unwrap_or_default());
    if MAGIC_TYPES.iter().any(|magic| content_type.starts_with(magic)) {
        return true;
    }
    !matches!(handler.unwrap_or_default(), b"" | b"default-handler")
        && handler != Some(content_type)
}

/// Whether an output filter makes something else of a file's bytes. mod_filter calls a filter that it
/// runs by content type `BYTYPE:` and the names of the real ones.
pub fn changes_content(filter: &[u8]) -> bool {
    const CHANGING: [&[u8]; 3] = [b"INCLUDES", b"SUBSTITUTE", b"SED"];
    // Every request has half a dozen filters, and hardly ever one of these.
    if !matches!(filter.first(), Some(b'b' | b'B' | b'i' | b'I' | b's' | b'S')) {
        return false;
    }
    let names = match filter.split_at_checked(7) {
        Some((prefix, names)) if prefix.eq_ignore_ascii_case(b"BYTYPE:") => names,
        _ => filter,
    };
    names
        .split(|&byte| byte == b';')
        .any(|name| CHANGING.iter().any(|known| known.eq_ignore_ascii_case(name)))
}

/// Whether a `Vary` that is set before the answer is made says that the file was chosen for this client:
/// by negotiation or by what identifies it. Other headers in it come from the conditions of `<If>` and of
/// rewrite rules, which are the administrator's word on what is offloaded to whom.
pub fn varies(vary: &[u8]) -> bool {
    const CHOOSING: [&[u8]; 7] = [
        b"*",
        b"negotiate",
        b"accept",
        b"accept-language",
        b"accept-charset",
        b"cookie",
        b"authorization",
    ];
    vary.split(|&byte| byte == b',').any(|name| {
        CHOOSING.iter().any(|choosing| choosing.eq_ignore_ascii_case(name.trim_ascii()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directive::{HostLayer, rows};
    use crate::setting::tests::context;

    fn policy(statements: &[&str]) -> Layer {
        let mut layer = Layer::default();
        for statement in statements {
            let words: Vec<&str> = statement.split(' ').collect();
            let row = rows().find(|row| row.name.to_str() == Ok(words[0])).unwrap();
            row.say(&mut layer, &mut HostLayer::default(), &words[1..], &context()).unwrap();
        }
        layer
    }

    fn usual() -> Layer {
        policy(&[
            "OffloadEngine On",
            "OffloadHost cdn1",
            "OffloadExcludeMimeType text/*",
            "OffloadExcludeUserAgent *bot*",
            "OffloadExcludeAddress 10.0.0.0/8 2001:db8:*",
        ])
    }

    fn good(path: &CanonicalPath) -> Facts<'_> {
        Facts {
            subrequest: false,
            error_document: false,
            get: true,
            query: false,
            authentication: false,
            dynamic: false,
            varies: false,
            file: Some(Bytes::new(5120)),
            client: "203.0.113.9".parse().ok(),
            client_text: b"203.0.113.9",
            offload_host: false,
            bypass: false,
            content_type: Some(b"application/zip"),
            agent: Some(b"curl/8"),
            path: Some(path),
        }
    }

    #[test]
    fn each_item_of_the_checklist_alone_decides() {
        let path = CanonicalPath::parse(b"/a.zip").unwrap();
        let good = good(&path);
        assert_eq!(judge(&usual(), &good), Ok(&path));
        let cases = [
            (Facts { subrequest: true, ..good }, Reason::Subrequest),
            (Facts { error_document: true, ..good }, Reason::ErrorDocument),
            (Facts { get: false, ..good }, Reason::NotGet),
            (Facts { query: true, ..good }, Reason::Query),
            (Facts { authentication: true, ..good }, Reason::Authentication),
            (Facts { dynamic: true, ..good }, Reason::Dynamic),
            (Facts { varies: true, ..good }, Reason::Varies),
            (Facts { file: None, ..good }, Reason::NotAFile),
            (Facts { file: Some(Bytes::new(5119)), ..good }, Reason::TooSmall),
            (Facts { client: "10.1.2.3".parse().ok(), ..good }, Reason::ExcludedAddress),
            (Facts { client_text: b"2001:db8::7", ..good }, Reason::ExcludedAddress),
            (Facts { offload_host: true, ..good }, Reason::OffloadHost),
            (Facts { bypass: true, ..good }, Reason::Bypass),
            (
                Facts { content_type: Some(b"Text/HTML; charset=utf-8"), ..good },
                Reason::ExcludedType,
            ),
            (Facts { agent: Some(b"GoogleBot/2.1"), ..good }, Reason::ExcludedAgent),
            (Facts { path: None, ..good }, Reason::Path),
        ];
        for (facts, reason) in cases {
            assert_eq!(judge(&usual(), &facts), Err(reason));
        }
        assert_eq!(
            judge(&policy(&["OffloadEngine Off", "OffloadHost cdn1"]), &good),
            Err(Reason::EngineOff)
        );
        assert_eq!(judge(&policy(&["OffloadEngine On"]), &good), Err(Reason::NoHost));
    }

    #[test]
    fn a_minimum_of_0_offloads_empty_files() {
        let path = CanonicalPath::parse(b"/a.zip").unwrap();
        let facts = Facts { file: Some(Bytes::new(0)), ..good(&path) };
        let statements = ["OffloadEngine On", "OffloadHost cdn1", "OffloadMinSize 0"];
        assert_eq!(judge(&policy(&statements), &facts), Ok(&path));
    }

    #[test]
    fn a_missing_type_or_agent_is_excluded_only_by_a_pattern_for_everything() {
        let path = CanonicalPath::parse(b"/a.zip").unwrap();
        let facts = Facts { content_type: None, agent: None, ..good(&path) };
        assert_eq!(judge(&usual(), &facts), Ok(&path));
        let statements = ["OffloadEngine On", "OffloadHost cdn1", "OffloadExcludeUserAgent *"];
        assert_eq!(judge(&policy(&statements), &facts), Err(Reason::ExcludedAgent));
    }

    #[test]
    fn a_handler_that_is_not_httpd_s_own_is_dynamic() {
        for (handler, content_type, dynamic) in [
            (None, None, false),
            (Some("default-handler"), Some("text/html"), false),
            (Some("application/zip"), Some("application/zip"), false),
            (Some("text/plain"), Some("text/plain; charset=utf-8"), false),
            (Some("cgi-script"), Some("text/plain"), true),
            (Some("server-status"), None, true),
            (Some("application/x-httpd-php"), Some("application/x-httpd-php"), true),
            (Some("proxy-server"), None, true),
            (Some("httpd/unix-directory"), Some("httpd/unix-directory"), true),
        ] {
            let answer = is_dynamic(handler.map(str::as_bytes), content_type.map(str::as_bytes));
            assert_eq!(answer, dynamic, "{handler:?} {content_type:?}");
        }
    }

    #[test]
    fn a_filter_is_known_also_when_mod_filter_runs_it() {
        for (filter, changes) in [
            ("includes", true),
            ("INCLUDES", true),
            ("bytype:substitute", true),
            ("BYTYPE:DEFLATE;SED", true),
            ("BYTYPE:DEFLATE", false),
            ("deflate", false),
            ("byrange", false),
            ("", false),
        ] {
            assert_eq!(changes_content(filter.as_bytes()), changes, "{filter}");
        }
    }

    #[test]
    fn vary_counts_when_the_file_was_chosen_for_the_client() {
        for (vary, counts) in [
            ("negotiate,accept-language", true),
            ("Accept-Encoding", false),
            ("Host, Accept-Encoding", false),
            ("Host,User-Agent", false),
            ("X-Slow , Cookie", true),
            ("*", true),
            ("", false),
        ] {
            assert_eq!(varies(vary.as_bytes()), counts, "{vary}");
        }
    }

    #[test]
    fn the_log_line_has_the_note_s_word() {
        assert_eq!(
            Reason::TooSmall.to_string(),
            "the file is smaller than OffloadMinSize (too-small)"
        );
    }
}
