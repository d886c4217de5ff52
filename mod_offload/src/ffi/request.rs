//! A request as a borrowed Rust type.

use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use offload_core::directive::Layer;
use offload_core::placement::Host;
use offload_core::units::Bytes;

use super::log::{Level, c_line};
use super::pool::Pool;
use super::server::Server;
use super::{bytes, module, sys};
use crate::hooks::Running;

/// A request that httpd lent to a hook.
#[derive(Clone, Copy)]
pub(crate) struct Request<'r> {
    raw: NonNull<sys::request_rec>,
    life: PhantomData<&'r ()>,
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

    /// What was made ready for all requests when the server started.
    pub(crate) fn running(self) -> Option<&'r Running> {
        let server = field!(self, server);
        // SAFETY: a request's server lives longer than the request.
        unsafe { Server::<'r>::borrow(server) }?.state()?.running()
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

    fn previous(self) -> Option<Self> {
        let previous = field!(self, prev);
        // SAFETY: a request that was redirected lives as long as its successor: one pool has both.
        unsafe { Self::borrow(previous) }
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
        // SAFETY: the request is live (`borrow`); the type is static.
        unsafe { sys::ap_set_content_type(self.raw(), c"text/plain".as_ptr()) };
        let body = self.text(location).unwrap_or_default();
        // SAFETY: the request is live (`borrow`); the body lives in its pool. Should the client be gone,
        // httpd finds out by itself.
        unsafe { sys::offload_send_body(self.raw(), body.as_ptr().cast(), body.len()) };
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
        let vector = field!(self, request_config);
        // SAFETY: httpd made the vector for this request, and only `promised` reads our entry; the host
        // lives in a section's Layer, which lives as long as the request.
        unsafe { module::set_config(vector, ptr::from_ref(host)) };
    }

    /// What `promise` remembered.
    pub(crate) fn promised(self) -> Option<&'r Host> {
        let vector = field!(self, request_config);
        // SAFETY: our entry in a request's vector is NULL or what `promise` put there.
        unsafe { module::config(vector) }
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
        let pool = field!(self, pool);
        // SAFETY: the request's pool lives as long as it does, and this thread alone uses it now.
        match unsafe { Pool::borrow(pool) } {
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
