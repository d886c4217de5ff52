//! A request as a borrowed Rust type.

use std::cell::{Cell, OnceCell, RefCell};
use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::net::IpAddr;
use std::ptr::{self, NonNull};

use offload_core::directive::Layer;
use offload_core::placement::Host;
use offload_core::units::Bytes;

use super::log::{Level, c_line};
use super::pool::Pool;
use super::server::Server;
use super::socket::Socket;
use super::{bytes, module, sys};
use crate::choke::Response;
use crate::hooks::Running;
use crate::lease::{Leases, Seats};

/// A request that httpd lent to a hook.
#[derive(Clone, Copy)]
pub(crate) struct Request<'r> {
    raw: NonNull<sys::request_rec>,
    life: PhantomData<&'r ()>,
}

/// What the module keeps with a request.
struct Attached {
    connection: *const sys::conn_rec,
    request: *mut sys::request_rec,
    promised: Cell<*const Host>,
    leases: RefCell<Leases>,
    response: OnceCell<Response>,
}

/// The last byte has left: httpd clears the request's pool then.
impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: a request's connection lives longer than the request.
        let Some(connection) = (unsafe { self.connection.as_ref() }) else { return };
        // SAFETY: the request and those that it was redirected to lie in the pool that is being cleared: their
        // memory is there until all clean-ups have run.
        let request = unsafe { Request::borrow(self.request) };
        if let (Some(response), Some(request)) = (self.response.get(), request) {
            end(response, request, connection.aborted != 0);
        }
        if connection.keepalive != sys::ap_conn_keepalive_e_AP_CONN_CLOSE {
            return;
        }
        // The client is served; only the end of the connection lingers.
        // SAFETY: our entry in a connection's vector is NULL or what `seats` put there, which the
        // connection's pool drops after the request's.
        if let Some(seats) = unsafe { module::config::<RefCell<Seats>>(connection.conn_config) } {
            let mut seats = seats.borrow_mut();
            // httpd may write the last of this answer together with the next one's first, and knows already
            // that the connection closes after that one.
            if seats.latest == self.request.addr() {
                seats.leave();
            }
        }
    }
}

#[cold]
fn end(response: &Response, request: Request<'_>, is_aborted: bool) {
    response.end(request.last(), is_aborted);
}

/// Reads one field. httpd's hooks of a request run one after the other, so that no field changes while
/// it is read.
macro_rules! field {
    ($request:expr, $($field:ident).+) => {
        // SAFETY: the request is live for as long as it is borrowed (`Request::borrow`).
        unsafe { (&raw const (*$request.raw.as_ptr()).$($field).+).read() }
    };
}

impl<'r> Request<'r> {
    /// Borrows a request.
    ///
    /// # Safety
    /// `raw` is NULL or a request that stays alive for `'r`, and is used by this thread only.
    pub(super) unsafe fn borrow(raw: *mut sys::request_rec) -> Option<Self> {
        NonNull::new(raw).map(|raw| Self { raw, life: PhantomData })
    }

    pub(super) fn raw(self) -> *mut sys::request_rec {
        self.raw.as_ptr()
    }

    /// What holds for the request's file, if any section said something.
    pub(crate) fn policy(self) -> Option<&'r Layer> {
        let vector = field!(self, per_dir_config);
        // SAFETY: httpd made the vector; our entry in it is NULL or a Layer of `create_dir_config` or
        // `merge_dir_config`, in a pool that lives at least as long as the request.
        unsafe { module::config(vector) }
    }

    /// The virtual host.
    pub(crate) fn server(self) -> Option<Server<'r>> {
        let server = field!(self, server);
        // SAFETY: a request's server lives longer than the request.
        unsafe { Server::<'r>::borrow(server) }
    }

    /// What was made ready for all requests when the server started.
    pub(crate) fn running(self) -> Option<&'r Running> {
        Some(self.server()?.host()?.running())
    }

    /// Whether the server made it for itself, to include its answer in another one.
    pub(crate) fn is_subrequest(self) -> bool {
        !field!(self, main).is_null()
    }

    /// Whether nothing has failed so far; the page for an error carries the error's status.
    pub(crate) fn is_fine(self) -> bool {
        u32::try_from(field!(self, status)) == Ok(sys::HTTP_OK)
    }

    /// The requests that were redirected internally to become this one, the client's own last.
    pub(crate) fn predecessors(self) -> impl Iterator<Item = Self> {
        std::iter::successors(self.previous(), |request| request.previous())
    }

    /// What the client asked for, before internal redirects.
    pub(crate) fn first(self) -> Self {
        self.predecessors().last().unwrap_or(self)
    }

    /// The request that was redirected internally to become this one.
    pub(crate) fn previous(self) -> Option<Self> {
        let previous = field!(self, prev);
        // SAFETY: a request that was redirected lives as long as its successor: one pool has both.
        unsafe { Self::borrow(previous) }
    }

    /// What the client's request has become, after internal redirects.
    fn last(self) -> Self {
        let next = |request: &Self| {
            let next = field!(request, next);
            // SAFETY: a request that was redirected lives as long as its successor: one pool has both.
            unsafe { Self::borrow(next) }
        };
        std::iter::successors(Some(self), next).last().unwrap_or(self)
    }

    /// The connection, which lives longer than the request.
    pub(super) fn connection(self) -> *mut sys::conn_rec {
        field!(self, connection)
    }

    /// The request's pool.
    pub(super) fn pool(self) -> Option<Pool> {
        let pool = field!(self, pool);
        // SAFETY: the request's pool lives as long as it does, and this thread alone uses it now.
        unsafe { Pool::borrow(pool) }
    }

    /// The socket of its connection.
    pub(crate) fn socket(self) -> Option<Socket> {
        // SAFETY: a request's connection lives longer than the request.
        unsafe { Socket::of(self.connection()) }
    }

    /// Whether it is a stream of HTTP/2: one of several on its connection.
    pub(crate) fn is_stream(self) -> bool {
        // SAFETY: a request's connection lives longer than the request.
        unsafe { !(*self.connection()).master.is_null() }
    }

    /// Whether something of what was made for its connection has not been given to the kernel.
    pub(crate) fn has_output_waiting(self) -> bool {
        // SAFETY: a request's connection lives longer than the request.
        unsafe { (*self.connection()).data_in_output_filters != 0 }
    }

    /// Whether TLS lies between here and the connection.
    pub(crate) fn is_encrypted(self) -> bool {
        // SAFETY: a request's connection lives longer than the request.
        unsafe { sys::ap_ssl_conn_is_ssl(self.connection()) != 0 }
    }

    /// Whether its file must not be sent by sendfile.
    pub(crate) fn forbids_sendfile(self) -> bool {
        // SAFETY: the request is live (`borrow`), and httpd has merged its section.
        unsafe { sys::offload_forbids_sendfile(self.raw()) != 0 }
    }

    /// Whether the client wants no body.
    pub(crate) fn is_head(self) -> bool {
        field!(self, header_only) != 0
    }

    /// A variable of the request's environment, as SetEnvIf and its like set it.
    pub(crate) fn variable(self, name: &str) -> Option<&'r [u8]> {
        let name = std::ffi::CString::new(name).ok()?;
        let table = field!(self, subprocess_env);
        // SAFETY: the table lives as long as the request; the name ends with a NUL.
        self.text(unsafe { sys::apr_table_get(table, name.as_ptr()) })
    }

    /// Bytes of the body that were made so far.
    pub(crate) fn body_bytes(self) -> u64 {
        u64::try_from(field!(self, bytes_sent)).unwrap_or(0)
    }

    /// Whether the method is GET and not HEAD, and the client understands more than HTTP/0.9, which has
    /// no redirection.
    pub(crate) fn is_get(self) -> bool {
        u32::try_from(field!(self, method_number)) == Ok(sys::M_GET)
            && field!(self, header_only) == 0
            && field!(self, assbackwards) == 0
    }

    /// The request target as the client wrote it; httpd brings `parsed_uri` to a spelling of its own.
    pub(crate) fn target(self) -> &'r [u8] {
        self.text(field!(self, unparsed_uri)).unwrap_or_default()
    }

    /// Whether the URL has a `?`.
    pub(crate) fn has_query(self) -> bool {
        !field!(self, args).is_null()
    }

    /// Whether credentials are asked for here (AuthType), or were given.
    pub(crate) fn has_authentication(self) -> bool {
        // SAFETY: the request is live (`borrow`).
        let kind = unsafe { sys::ap_auth_type(self.raw()) };
        !kind.is_null() || !field!(self, user).is_null() || !field!(self, ap_auth_type).is_null()
    }

    /// What will make the answer; httpd sets it to the content type when nobody chose a handler.
    pub(crate) fn handler(self) -> Option<&'r [u8]> {
        self.text(field!(self, handler))
    }

    /// Whether that is this handler. Asked of every request: mostly the first byte tells.
    #[inline]
    pub(crate) fn is_handled_by(self, name: &CStr) -> bool {
        let handler = field!(self, handler);
        if handler.is_null() {
            return false;
        }
        // SAFETY: it is not NULL, so it has at least the NUL at its end.
        let first = unsafe { handler.read() }.cast_unsigned();
        name.to_bytes_with_nul().first() == Some(&first) && self.handler() == Some(name.to_bytes())
    }

    /// The content type, with its parameters.
    pub(crate) fn content_type(self) -> Option<&'r [u8]> {
        self.text(field!(self, content_type))
    }

    /// What follows the file's name in the URL.
    pub(crate) fn path_info(self) -> Option<&'r [u8]> {
        self.text(field!(self, path_info)).filter(|info| !info.is_empty())
    }

    /// Whether an output filter with a name that is meant works on the answer.
    pub(crate) fn has_filter(self, is_meant: impl Fn(&[u8]) -> bool) -> bool {
        let mut filter = field!(self, output_filters);
        while !filter.is_null() {
            // SAFETY: httpd keeps a request's filters alive and linked as long as the request.
            let record = unsafe { (*filter).frec };
            if !record.is_null() {
                // SAFETY: a filter's record lives in httpd's registry.
                let name = unsafe { (*record).name };

                if self.text(name).is_some_and(&is_meant) {
                    return true;
                }
            }
            // SAFETY: as above.
            filter = unsafe { (*filter).next };
        }
        false
    }

    /// The size of the file that the URL leads to, if it is a regular one.
    pub(crate) fn regular_file(self) -> Option<Bytes> {
        if field!(self, finfo.filetype) != sys::apr_filetype_e_APR_REG {
            return None;
        }
        u64::try_from(field!(self, finfo.size)).ok().map(Bytes::new)
    }

    /// The client's address as text: the one that mod_remoteip vouches for.
    pub(crate) fn client(self) -> &'r [u8] {
        self.text(field!(self, useragent_ip)).unwrap_or_default()
    }

    /// The same as a value.
    pub(crate) fn client_address(self) -> Option<IpAddr> {
        let address = field!(self, useragent_addr);
        // SAFETY: httpd keeps the client's address as long as the request.
        let address = unsafe { address.as_ref() }?;
        match address.family {
            libc::AF_INET => {
                // SAFETY: the family says which member of the union is in use.
                let bytes = unsafe { address.sa.sin.sin_addr.s_addr }.to_ne_bytes();
                Some(IpAddr::from(bytes))
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let address = unsafe { address.sa.sin6 }.sin6_addr;
                // SAFETY: all members of an IPv6 address are the same bytes.
                let bytes = unsafe { address.__in6_u.__u6_addr8 };
                Some(IpAddr::from(bytes).to_canonical())
            }
            _ => None,
        }
    }

    /// A header of the request.
    pub(crate) fn header(self, name: &CStr) -> Option<&'r [u8]> {
        let table = field!(self, headers_in);
        // SAFETY: the table lives as long as the request; the name ends with a NUL.
        self.text(unsafe { sys::apr_table_get(table, name.as_ptr()) })
    }

    /// Answers 307 Temporary Redirect (RFC 9110, section 15.4.8) to the URL that the parts make, which
    /// nobody may store; also says so in plain text. httpd's own page for it costs twice as much.
    pub(crate) fn redirect(self, location: &[&str]) {
        let location = self.string(location);

        let headers = field!(self, headers_out);
        // SAFETY: the table lives as long as the request. What it has is about the file.
        unsafe { sys::apr_table_clear(headers) };
        self.set(headers, c"Location", location);
        self.set(headers, c"Cache-Control", c"no-store".as_ptr());
        // SAFETY: the request is live (`borrow`), and no other reference to it exists.
        unsafe { (*self.raw()).status = sys::HTTP_TEMPORARY_REDIRECT.cast_signed() };
        self.send(c"text/plain", location);
    }

    /// A header that the answer has so far.
    pub(crate) fn answer_header(self, name: &CStr) -> Option<&'r [u8]> {
        [field!(self, headers_out), field!(self, err_headers_out)].into_iter().find_map(|table| {
            // SAFETY: the request's tables live as long as it does; the name ends with a NUL.
            self.text(unsafe { sys::apr_table_get(table, name.as_ptr()) })
        })
    }

    /// Remembers, for a later hook of this request, the host that it may be sent to.
    pub(crate) fn promise(self, host: &'r Host) {
        if let Some(attached) = self.attached() {
            attached.promised.set(host);
        }
    }

    /// What `promise` remembered.
    pub(crate) fn promised(self) -> Option<&'r Host> {
        let promised = self.attachment()?.promised.get();
        // SAFETY: it is NULL or what `promise` put there: a host that lives in a section's Layer, which
        // lives as long as the request.
        unsafe { promised.as_ref() }
    }

    /// The leases that the request holds until its last byte has left: httpd clears a request's pool then.
    pub(crate) fn leases(self) -> Option<&'r RefCell<Leases>> {
        self.attached().map(|attached| &attached.leases)
    }

    /// What tells the client's requests of a connection apart.
    #[inline]
    pub(crate) fn number(self) -> usize {
        self.raw().addr()
    }

    /// The same, if nothing is attached yet: a request comes here for the first time.
    #[inline]
    pub(crate) fn first_leases(self) -> Option<&'r RefCell<Leases>> {
        if self.attachment().is_some() {
            return None;
        }
        self.attach().map(|attached| &attached.leases)
    }

    /// The same, if there are any.
    pub(crate) fn held_leases(self) -> Option<&'r RefCell<Leases>> {
        self.attachment().map(|attached| &attached.leases)
    }

    /// Keeps what is known of the response's throttling, until its last byte has left.
    pub(crate) fn keep_response(self, response: Response) -> Option<&'r Response> {
        self.attached().map(|attached| attached.response.get_or_init(|| response))
    }

    /// What `keep_response` keeps, if anything.
    pub(crate) fn held_response(self) -> Option<&'r Response> {
        self.attachment()?.response.get()
    }

    /// What the connection holds until it ends. `None` where a connection is not one client's: each HTTP/2
    /// stream is one of many, and a proxy's connection has now this client and now that one.
    pub(crate) fn seats(self) -> Option<&'r RefCell<Seats>> {
        if !self.is_of_its_connection() {
            return None;
        }
        if let Some(seats) = self.old_seats() {
            return Some(seats);
        }
        let connection = NonNull::new(field!(self, connection))?;
        // SAFETY: a request's connection lives longer than the request.
        let connection = unsafe { connection.as_ref() };
        // SAFETY: the connection's pool lives as long as it does, and this thread alone uses it now.
        let seats: *const RefCell<Seats> =
            unsafe { Pool::borrow(connection.pool) }?.own(RefCell::default());
        // SAFETY: httpd made the vector; `old_seats` reads our entry.
        unsafe { module::set_config(connection.conn_config, seats) };
        // SAFETY: `own` returns a live value.
        unsafe { seats.as_ref() }
    }

    /// Whether the connection is the client's of this request, and for one request at a time.
    #[inline]
    pub(crate) fn is_of_its_connection(self) -> bool {
        let connection = field!(self, connection);
        // SAFETY: a request's connection lives longer than the request.
        unsafe { connection.as_ref() }.is_some_and(|connection| {
            connection.master.is_null() && field!(self, useragent_addr) == connection.client_addr
        })
    }

    /// What the connection has held so far, if anything.
    pub(crate) fn old_seats(self) -> Option<&'r RefCell<Seats>> {
        let connection = NonNull::new(field!(self, connection))?;
        // SAFETY: a request's connection lives longer than the request.
        let connection = unsafe { connection.as_ref() };
        // SAFETY: our entry in a connection's vector is NULL or what `seats` put there; it lives in the
        // connection's pool. One thread at a time works on a connection.
        unsafe { module::config(connection.conn_config) }
    }

    fn attachment(self) -> Option<&'r Attached> {
        let vector = field!(self, request_config);
        // SAFETY: our entry in a request's vector is NULL or what `attached` put there.
        unsafe { module::config(vector) }
    }

    fn attached(self) -> Option<&'r Attached> {
        self.attachment().or_else(|| self.attach())
    }

    /// Attaches, where nothing is attached yet.
    #[inline(never)]
    fn attach(self) -> Option<&'r Attached> {
        let (vector, pool) = (field!(self, request_config), field!(self, pool));
        // SAFETY: the request's pool lives as long as it does, and this thread alone uses it now.
        let attached: *const Attached = unsafe { Pool::borrow(pool) }?.own(Attached {
            connection: field!(self, connection),
            request: self.raw(),
            promised: Cell::new(ptr::null()),
            leases: RefCell::default(),
            response: OnceCell::new(),
        });
        // SAFETY: httpd made the vector for this request; only `attachment` reads our entry.
        unsafe { module::set_config(vector, attached) };
        // SAFETY: `own` returns a live value.
        unsafe { attached.as_ref() }
    }

    /// The authenticated user.
    pub(crate) fn user(self) -> Option<&'r [u8]> {
        self.text(field!(self, user))
    }

    /// httpd's number of the method.
    pub(crate) fn method(self) -> u32 {
        u32::try_from(field!(self, method_number)).unwrap_or(0)
    }

    /// The URL's path, decoded and normalised by httpd.
    pub(crate) fn path(self) -> &'r [u8] {
        self.text(field!(self, uri)).unwrap_or_default()
    }

    /// The URL's query.
    pub(crate) fn query(self) -> &'r [u8] {
        self.text(field!(self, args)).unwrap_or_default()
    }

    /// When the request began, in microseconds.
    pub(crate) fn begun(self) -> u64 {
        field!(self, request_time).cast_unsigned()
    }

    /// Sets headers of a refusal, and the page for it unless the administrator has one.
    pub(crate) fn refuse(self, status: u16, retry_after: &'static CStr, page: &str) {
        let headers = field!(self, err_headers_out);
        self.set(headers, c"Retry-After", retry_after.as_ptr());
        self.set(headers, c"Cache-Control", c"no-store".as_ptr());
        // SAFETY: the request is live (`borrow`).
        let own = unsafe { sys::offload_error_document(self.raw(), status.into()) };
        if own.is_null() {
            let page = self.string(&[page, "\n"]);
            // SAFETY: the request is live (`borrow`); httpd copies the page.
            unsafe { sys::ap_custom_response(self.raw(), status.into(), page) };
        }
    }

    /// Answers 200 with a text of ours, which nobody may store.
    pub(crate) fn answer(self, content_type: &'static CStr, text: &str) {
        self.set(field!(self, headers_out), c"Cache-Control", c"no-store".as_ptr());
        self.send(content_type, self.string(&[text]));
    }

    fn send(self, content_type: &'static CStr, body: *const c_char) {
        // SAFETY: the request is live (`borrow`); the type is static.
        unsafe { sys::ap_set_content_type(self.raw(), content_type.as_ptr()) };
        let body = self.text(body).unwrap_or_default();
        // SAFETY: the request is live (`borrow`); the body lives in its pool. Should the client be gone,
        // httpd finds out by itself.
        unsafe { sys::offload_send_body(self.raw(), body.as_ptr().cast(), body.len()) };
    }

    /// A note that was set.
    pub(crate) fn note(self, name: &CStr) -> Option<&'r [u8]> {
        let table = field!(self, notes);
        // SAFETY: the table lives as long as the request; the name ends with a NUL.
        self.text(unsafe { sys::apr_table_get(table, name.as_ptr()) })
    }

    /// Sets a note, for access logs.
    pub(crate) fn set_note(self, name: &'static CStr, value: &'static CStr) {
        self.set(field!(self, notes), name, value.as_ptr());
    }

    /// Sets a note whose text was made for this request.
    pub(crate) fn set_note_text(self, name: &'static CStr, parts: &[&str]) {
        self.set(field!(self, notes), name, self.string(parts));
    }

    /// Writes one line to the error log.
    pub(crate) fn log(self, level: Level, line: &str) {
        let line = c_line(line);
        // SAFETY: the request is live (`borrow`); the line ends with a NUL.
        unsafe { sys::offload_log_request(self.raw(), level.number(), line.as_ptr()) };
    }

    fn set(self, table: *mut sys::apr_table_t, name: &'static CStr, value: *const c_char) {
        // SAFETY: the request's tables live as long as it does; the name is static, and the value is
        // static or in the request's pool, so that both live as long as the table.
        unsafe { sys::apr_table_setn(table, name.as_ptr(), value) };
    }

    fn string(self, parts: &[&str]) -> *const c_char {
        match self.pool() {
            Some(pool) => pool.string(parts),
            None => c"".as_ptr(),
        }
    }

    fn text(self, text: *const c_char) -> Option<&'r [u8]> {
        // SAFETY: only strings of the request, its tables and httpd's registries come here; they end with
        // a NUL and live as long as the request. httpd replaces them, it does not change them in place.
        unsafe { bytes(text) }
    }
}
