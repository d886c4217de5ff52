//! The base server: HEAD and GET, built from scratch, with time-outs on progress and no proxy ever.

use std::io::{self, Read};
use std::time::{Duration, SystemTime};

use ureq::config::Config;
use ureq::http::header::{HeaderMap, HeaderValue};
use ureq::http::{Response, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::typestate::WithoutBody;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body, BodyReader, RequestBuilder, Timeout};

use crate::failure::{Contact, Failure, Kind};
use crate::http::{Part, Validators};
use crate::options::{Base, Options};
use crate::representation::{Representation, Unfit, text};
use crate::tally::{Event, Tally};

/// What the steps of a request before the longest one may take together.
const STEP: Duration = Duration::from_secs(1);

/// The base server and how to speak to it.
pub(crate) struct Origin {
    agent: Agent,
    base: Base,
    patience: Duration,
    tally: Tally,
}

/// What the base says to a HEAD.
#[derive(Debug)]
pub(crate) enum Answer {
    /// 200: the file, as it is now.
    File(Representation),
    /// Another status, to be passed on.
    Other(Other),
}

/// A status of the base other than 200, and what belongs to it.
#[derive(Clone, Debug)]
pub(crate) struct Other {
    pub(crate) status: u16,
    pub(crate) location: Option<String>,
    pub(crate) retry_after: Option<String>,
}

/// A file on its way from the base.
pub(crate) struct Incoming {
    pub(crate) representation: Representation,
    /// The bytes from `first` on.
    pub(crate) first: u64,
    reader: BodyReader<'static>,
}

impl Origin {
    /// Prepares connections; opens none.
    ///
    /// # Errors
    /// A sentence, when OFFLOAD_CA cannot be used.
    pub(crate) fn new(options: &Options) -> Result<Self, String> {
        let patience = Some(options.timeout.duration());
        // Longer than its longest step may take, so that it can be told which one it was.
        let total = options.timeout.duration().saturating_add(STEP);
        let roots = match &options.ca {
            Some(path) if options.base.is_tls() => roots(path)?,
            _ => RootCerts::PlatformVerifier,
        };
        let config = Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("offload-cgi/", env!("CARGO_PKG_VERSION")))
            .accept("")
            .accept_encoding("identity")
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_resolve(patience)
            .timeout_connect(patience)
            .timeout_send_request(patience)
            .timeout_recv_response(patience)
            // Of each read, not of the whole: a transfer that goes on for hours is fine.
            .timeout_per_read(patience)
            .max_response_header_size(32 << 10)
            // A fast base is to be read in few steps.
            .input_buffer_size(1 << 20)
            .max_idle_connections(0)
            .build();
        let fixed = options.address.as_ref().map(|address| address.authority(&options.base));
        let resolver = Pinned { fixed, resolver: DefaultResolver::default() };
        let agent = Agent::with_parts(config, DefaultConnector::default(), resolver);
        let tally = Tally::of(options.cache.as_deref());
        Ok(Self { agent, base: options.base.clone(), patience: total, tally })
    }

    /// The longest that the base is waited for when it is asked for the state of a file: all steps together.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// Asks for the state of a file.
    ///
    /// # Errors
    /// `Down`, `TimedOut`, or `Refused` when the file is not one to serve.
    pub(crate) fn head(&self, path: &str) -> Result<Answer, Failure> {
        let request = self.ask(self.agent.head(self.base.url(path)));
        let request = request.config().timeout_global(Some(self.patience)).build();
        let response = request.call().map_err(|error| failure("HEAD", &error))?;
        let headers = response.headers();
        match response.status().as_u16() {
            200 => match Representation::read(headers, None, SystemTime::now()) {
                Err(Unfit::NoLength) if !headers.contains_key("transfer-encoding") => {
                    self.measure(path)
                }
                read => read.map(Answer::File).map_err(refusal),
            },
            401 => Err(refusal(Unfit::Authentication)),
            _ if headers.contains_key("www-authenticate") => Err(refusal(Unfit::Authentication)),
            status @ (300..=303 | 305..=406 | 408..=599) => Ok(Answer::Other(Other {
                status,
                location: text(headers, "location").map(str::to_owned),
                retry_after: text(headers, "retry-after").map(str::to_owned),
            })),
            status => Err(Kind::Down.says(format!(
                "the base answered HEAD with status {status}, which makes no sense"
            ))),
        }
    }

    /// Starts to fetch the version `wanted`, all of it or (if the base can do that) a part.
    ///
    /// # Errors
    /// `Changed` when the base has another version by now, else as `head`.
    pub(crate) fn get(
        &self,
        path: &str,
        wanted: &Representation,
        part: Part,
    ) -> Result<Incoming, Failure> {
        let get = |conditions: Vec<(&str, String)>| {
            let mut request = self.ask(self.agent.get(self.base.url(path)));
            for (name, value) in conditions {
                request = request.header(name, value);
            }
            request.call().map_err(|error| failure("GET", &error))
        };
        let mut condition = version(wanted);
        let mut response = get([condition.clone(), range(wanted, part)].concat())?;
        if response.status().as_u16() == 412 {
            // Perhaps it is this version all the same: httpd compares with the ETag that it would have
            // given, whatever mod_headers makes of it. It is asked first, for another version's bytes
            // would be sent in vain.
            match self.head(path)? {
                Answer::File(now) if now.is_of(wanted) => {
                    condition.clear();
                    response = get(range(wanted, part))?;
                }
                Answer::Other(Other { status: status @ 500.., .. }) => {
                    return Err(Kind::Down.says(format!("the base answered with status {status}")));
                }
                _ => return Err(Kind::Changed.says("the base has another version by now")),
            }
        }
        if response.status().as_u16() == 206 && !names_its_version(response.headers(), wanted) {
            // Whose part that is, only a base that heeds the conditions knows.
            response = get(condition)?;
        }
        let first = match response.status().as_u16() {
            200 => 0,
            206 if content_range(response.headers()) == Some(part.content_range(wanted.length)) => {
                part.first
            }
            401 => return Err(refusal(Unfit::Authentication)),
            status @ (500..=599 | 206) => {
                return Err(Kind::Down.says(format!("the base answered GET with status {status}")));
            }
            status => {
                return Err(Kind::Changed.says(format!(
                    "the base answered HEAD with status 200, but GET with {status}"
                )));
            }
        };
        incoming(response, wanted, first)
    }

    /// Asks for the state of a file by GET, and does not read the file: httpd leaves out the length of
    /// an empty file when it answers HEAD.
    fn measure(&self, path: &str) -> Result<Answer, Failure> {
        let request = self.ask(self.agent.get(self.base.url(path)));
        let request = request.config().timeout_global(Some(self.patience)).build();
        let response = request.call().map_err(|error| failure("GET", &error))?;
        if response.status().as_u16() != 200 {
            return Err(Kind::Changed.says("the base answered HEAD with status 200, but not GET"));
        }
        Representation::read(response.headers(), None, SystemTime::now())
            .map(Answer::File)
            .map_err(refusal)
    }

    /// The headers that every request has; nothing of the client's.
    fn ask(&self, request: RequestBuilder<WithoutBody>) -> RequestBuilder<WithoutBody> {
        self.tally.add(Event::BaseRequest, 1);
        request.header("X-Mod-Offload-Bypass", "true").header("Connection", "close")
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

/// What went wrong while a body was read.
pub(crate) fn body_failure(error: io::Error) -> Failure {
    failure("GET", &ureq::Error::from(error))
}

/// The header that makes the base answer with this very version or not at all.
fn version(wanted: &Representation) -> Vec<(&'static str, String)> {
    match (&wanted.validators.etag, &wanted.validators.modified) {
        (Some(etag), _) if !etag.is_weak() => vec![("If-Match", etag.as_str().to_owned())],
        (_, Some(modified)) => vec![("If-Unmodified-Since", modified.as_str().to_owned())],
        _ => Vec::new(),
    }
}

/// The headers that ask for a part only, and for everything if that would be of another version: the base may
/// heed `If-Range` and not the other conditions, or have changed since it was asked.
fn range(wanted: &Representation, part: Part) -> Vec<(&'static str, String)> {
    if part == Part::whole(wanted.length) || part.length == 0 {
        return Vec::new();
    }
    let last = part.first.saturating_add(part.length - 1);
    let mut headers = vec![("Range", format!("bytes={}-{last}", part.first))];
    // RFC 9110, section 13.1.5: never a weak validator, and a date only where there is no tag.
    let validators = &wanted.validators;
    let modified = validators.modified.as_ref().map(|modified| modified.as_str());
    let validator = validators.etag.as_ref().map(|etag| etag.as_str()).or(modified);
    if let Some(validator) = validator.filter(|_| validators.are_strong()) {
        headers.push(("If-Range", validator.to_owned()));
    }
    headers
}

/// Whether a 206 repeats the validator of the version that is wanted, as it must (RFC 9110, section 15.3.7).
fn names_its_version(headers: &HeaderMap, wanted: &Representation) -> bool {
    let Validators { etag, modified, .. } = &wanted.validators;
    match (etag, modified) {
        (Some(etag), _) => text(headers, "etag") == Some(etag.as_str()),
        (None, Some(modified)) => text(headers, "last-modified") == Some(modified.as_str()),
        (None, None) => false,
    }
}

fn content_range(headers: &HeaderMap) -> Option<String> {
    text(headers, "content-range").map(str::to_owned)
}

/// Makes sure that what comes is what was wanted: the headers of the GET rule.
fn incoming(
    response: Response<Body>,
    wanted: &Representation,
    first: u64,
) -> Result<Incoming, Failure> {
    let partial = response.status().as_u16() == 206;
    let total = partial.then_some(wanted.length);
    let mut headers = response.headers().clone();
    if partial && let Some(modified) = &wanted.validators.modified {
        // A 206 with an ETag may leave the date out.
        if let Ok(value) = HeaderValue::from_str(modified.as_str()) {
            headers.entry("last-modified").or_insert(value);
        }
    }
    let mut representation =
        Representation::read(&headers, total, SystemTime::now()).map_err(refusal)?;
    if partial {
        representation.complete(wanted);
    }
    if !representation.is_of(wanted) {
        return Err(Kind::Changed.says("the base has another version by now"));
    }
    Ok(Incoming { representation, first, reader: response.into_body().into_reader() })
}

fn refusal(unfit: Unfit) -> Failure {
    Kind::Refused.says(unfit.to_string())
}

fn failure(what: &str, error: &ureq::Error) -> Failure {
    let timed_out = match error {
        ureq::Error::Timeout(_) => true,
        ureq::Error::Io(error) => error.kind() == io::ErrorKind::TimedOut,
        _ => false,
    };
    let kind = if timed_out { Kind::TimedOut } else { Kind::Down };
    let failure = kind.says(format!("{what} to the base failed: {error}"));
    Failure { contact: contact(error), ..failure }
}

/// How far a request came that has failed.
fn contact(error: &ureq::Error) -> Contact {
    use std::io::ErrorKind;
    match error {
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::Rustls(_)
        | ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect)
        | ureq::Error::Tls(_) => Contact::Missing,
        ureq::Error::Io(error) => match error.kind() {
            ErrorKind::AddrNotAvailable
            | ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable => Contact::Missing,
            _ => Contact::Mute,
        },
        ureq::Error::Timeout(_) => Contact::Mute,
        _ => Contact::Made,
    }
}

fn roots(path: &std::path::Path) -> Result<RootCerts, String> {
    let wrong = |what: &dyn std::fmt::Display| {
        format!("OFFLOAD_CA: '{}': {what}; name a file of certificates in PEM", path.display())
    };
    let pem = std::fs::read(path).map_err(|error| wrong(&error))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| wrong(&error))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(wrong(&"there is no certificate in it"));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

/// Looks names up, but for a base whose address is given.
#[derive(Debug)]
struct Pinned {
    fixed: Option<String>,
    resolver: DefaultResolver,
}

impl Resolver for Pinned {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let Some(fixed) = &self.fixed else { return self.resolver.resolve(uri, config, timeout) };
        let uri = Uri::builder()
            .scheme("http")
            .authority(fixed.as_str())
            .path_and_query("/")
            .build()
            .map_err(ureq::Error::Http)?;
        self.resolver.resolve(&uri, config, timeout)
    }
}
