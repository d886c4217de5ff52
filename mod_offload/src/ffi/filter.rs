//! Output filters of a response, and the brigades that go through them.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

use super::guard::guard;
use super::module::report_start;
use super::pool::Pool;
use super::request::Request;
use super::sys;
use crate::choke::{self, Response};
use crate::pacer::Switch;

/// What a filter of httpd returns: `APR_SUCCESS`, or why it failed.
pub(crate) type Status = sys::apr_status_t;

/// The failure of what was our fault.
pub(crate) const BROKEN: Status = sys::APR_EGENERAL.cast_signed();

pub(super) fn checked(status: Status) -> Result<(), Status> {
    if status == sys::APR_SUCCESS.cast_signed() { Ok(()) } else { Err(status) }
}

pub(super) fn code(result: Result<(), Status>) -> Status {
    result.err().unwrap_or(sys::APR_SUCCESS.cast_signed())
}

/// httpd's record of our filter; it is registered anew, under the same name, at each reading of the
/// configuration.
static PACE: AtomicPtr<sys::ap_filter_rec_t> = AtomicPtr::new(ptr::null_mut());

/// Registers the filter of throttled responses: behind everything that makes the response, its headers and
/// chunks included, and before the connection's own filters, TLS among them.
pub(super) fn register() {
    // SAFETY: httpd registers filters while it reads its configuration, with one thread; the name is static.
    let record = unsafe {
        sys::ap_register_output_filter(
            c"OFFLOAD_PACE".as_ptr(),
            Some(pace),
            None,
            sys::ap_filter_type_AP_FTYPE_CONNECTION - 1,
        )
    };
    PACE.store(record, Ordering::Relaxed);
}

impl<'r> Request<'r> {
    /// Puts the filter of throttled responses into the request's chain, if it is not there.
    pub(crate) fn add_pace_filter(self, response: &'r Response) {
        let record = PACE.load(Ordering::Relaxed);
        if record.is_null() || self.has_filter(|name| name.eq_ignore_ascii_case(b"OFFLOAD_PACE")) {
            return;
        }
        // SAFETY: the record is httpd's own, the request and its connection are live, and the response lives
        // in the pool of the first of the redirected requests, which is the pool of all of them.
        unsafe {
            sys::ap_add_output_filter_handle(
                record,
                ptr::from_ref(response).cast_mut().cast(),
                self.raw(),
                self.connection(),
            );
        }
    }
}

unsafe extern "C" fn pace(
    filter: *mut sys::ap_filter_t,
    brigade: *mut sys::apr_bucket_brigade,
) -> Status {
    guard(BROKEN, report_start, || {
        // SAFETY: httpd passes our own filter, which is live.
        let output = unsafe { Output::borrow(filter) };
        // SAFETY: httpd passes a brigade that is ours for the call.
        let brigade = unsafe { Brigade::borrow(brigade) };
        let (Some(output), Some(brigade)) = (output, brigade) else { return BROKEN };
        // SAFETY: the filter is live.
        let context = unsafe { (*filter).ctx };
        // SAFETY: the context is what `add_pace_filter` put there, which lives as long as the request.
        let response = unsafe { context.cast::<Response>().as_ref() };
        code(match response {
            Some(response) => choke::write(response, output, brigade),
            None => output.pass(brigade),
        })
    })
}

/// Our place in a chain of filters.
#[derive(Clone, Copy)]
pub(crate) struct Output<'f> {
    raw: NonNull<sys::ap_filter_t>,
    life: PhantomData<&'f ()>,
}

impl<'f> Output<'f> {
    /// # Safety
    /// `raw` is NULL or a filter that lives for `'f`, used by this thread only.
    pub(super) unsafe fn borrow(raw: *mut sys::ap_filter_t) -> Option<Self> {
        NonNull::new(raw).map(|raw| Self { raw, life: PhantomData })
    }

    /// The request; `None` for a filter of a connection.
    pub(crate) fn request(self) -> Option<Request<'f>> {
        // SAFETY: the filter is live (`borrow`).
        let request = unsafe { (*self.raw.as_ptr()).r };
        // SAFETY: a request's filters live no longer than it.
        unsafe { Request::borrow(request) }
    }

    /// Passes a brigade on. What was not passed on when it fails is destroyed with the brigade.
    ///
    /// # Errors
    /// What the next filter says: mostly that the client is gone.
    pub(crate) fn pass(self, brigade: Brigade<'_>) -> Result<(), Status> {
        // SAFETY: the filter is live (`borrow`), and the last one of a chain is httpd's own.
        let next = unsafe { (*self.raw.as_ptr()).next };
        // SAFETY: httpd's filters take any live brigade, and leave it empty or to the caller.
        checked(unsafe { sys::ap_pass_brigade(next, brigade.raw()) })
    }
}

/// A brigade that a response keeps; both live as long as the request's pool.
#[derive(Default)]
pub(crate) struct Kept(Cell<Option<NonNull<sys::apr_bucket_brigade>>>);

/// What goes through a filter: bytes, parts of files, and what has no bytes (a list of buckets:
/// apr_buckets.h).
#[derive(Clone, Copy)]
pub(crate) struct Brigade<'b> {
    raw: NonNull<sys::apr_bucket_brigade>,
    life: PhantomData<&'b ()>,
}

/// What is in a brigade.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Census {
    /// Bytes in memory.
    pub(crate) memory: u64,
    /// Bytes in files.
    pub(crate) file: u64,
    /// Something of which the length is not known.
    pub(crate) unknown: bool,
    /// The end of the response.
    pub(crate) ends: bool,
    /// What lies in it must be written before anything else is done.
    pub(crate) flushes: bool,
    /// The end of the request, or of the connection.
    pub(crate) closes: bool,
}

impl Census {
    /// All bytes.
    pub(crate) fn bytes(self) -> u64 {
        self.memory.saturating_add(self.file)
    }
}

/// What kind of bucket it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Memory,
    File,
    Eos,
    Eor,
    Eoc,
    Flush,
    Other,
}

impl<'b> Brigade<'b> {
    /// # Safety
    /// `raw` is NULL or a brigade that lives for `'b`, used by this thread only.
    pub(super) unsafe fn borrow(raw: *mut sys::apr_bucket_brigade) -> Option<Self> {
        NonNull::new(raw).map(|raw| Self { raw, life: PhantomData })
    }

    /// An empty one, which lives as long as the request.
    fn of_request(request: Request<'b>) -> Option<Self> {
        let pool = request.pool()?;
        // SAFETY: the connection outlives its requests.
        unsafe { Self::made(pool, request.connection()) }
    }

    /// # Safety
    /// The connection is live, and outlives the pool or is what it belongs to; the pool lives for `'b`.
    pub(super) unsafe fn made(pool: Pool, connection: *mut sys::conn_rec) -> Option<Self> {
        // SAFETY: the caller promises the connection.
        let alloc = unsafe { (*connection).bucket_alloc };
        // SAFETY: the pool and the allocator are live.
        let raw = unsafe { sys::apr_brigade_create(pool.raw(), alloc) };
        // SAFETY: it was made just now, for the caller alone.
        unsafe { Self::borrow(raw) }
    }

    pub(super) fn raw(self) -> *mut sys::apr_bucket_brigade {
        self.raw.as_ptr()
    }

    /// The brigade that was kept with the request's response: it is there as long as the request.
    pub(crate) fn of_response(request: Request<'b>, kept: &Kept) -> Option<Self> {
        if let Some(kept) = kept.0.get() {
            return Some(Self { raw: kept, life: PhantomData });
        }
        let made = Self::of_request(request)?;
        kept.0.set(Some(made.raw));
        Some(made)
    }

    /// What makes its buckets; it lives as long as the connection.
    fn alloc(self) -> *mut sys::apr_bucket_alloc_t {
        // SAFETY: the brigade is live (`borrow`).
        unsafe { (*self.raw()).bucket_alloc }
    }

    /// The buckets, each looked at after it is known which one follows.
    pub(super) fn buckets(self) -> impl Iterator<Item = NonNull<sys::apr_bucket>> + use<'b> {
        // SAFETY: the brigade is live (`borrow`).
        let mut next = NonNull::new(unsafe { sys::offload_bucket_first(self.raw()) });
        std::iter::from_fn(move || {
            let bucket = next?;
            // SAFETY: the bucket is in the brigade: nobody but the loop's body touches it meanwhile, and that
            // may only remove this one, after we have looked.
            next = NonNull::new(unsafe { sys::offload_bucket_next(self.raw(), bucket.as_ptr()) });
            Some(bucket)
        })
    }

    pub(crate) fn is_empty(self) -> bool {
        self.buckets().next().is_none()
    }

    /// Counts what is in it.
    pub(crate) fn census(self) -> Census {
        let mut census = Census::default();
        for bucket in self.buckets() {
            // SAFETY: the bucket is live in the brigade.
            let length = unsafe { bucket.as_ref() }.length as u64;
            match kind(bucket) {
                Kind::Eos => census.ends = true,
                Kind::Flush => census.flushes = true,
                Kind::Eor | Kind::Eoc => census.closes = true,
                Kind::Other => {}
                // (apr_size_t)-1: it is found out by reading.
                _ if length == u64::MAX => census.unknown = true,
                Kind::Memory => census.memory = census.memory.saturating_add(length),
                Kind::File => census.file = census.file.saturating_add(length),
            }
        }
        census
    }

    /// Moves what lies behind the first `bytes` bytes into another brigade, which is empty.
    ///
    /// # Errors
    /// A bucket could not be read to find out how long it is.
    pub(crate) fn split(self, bytes: u64, rest: Self) -> Result<(), Status> {
        let mut after = ptr::null_mut();
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        // SAFETY: the brigade is live (`borrow`), `after` is writable.
        let status = unsafe { sys::apr_brigade_partition(self.raw(), bytes, &raw mut after) };
        if status == sys::APR_INCOMPLETE.cast_signed() {
            return Ok(());
        }
        checked(status)?;
        // SAFETY: `after` is a bucket of the brigade or its end; `rest` is live and empty.
        unsafe { sys::apr_brigade_split_ex(self.raw(), after, rest.raw()) };
        Ok(())
    }

    /// Moves everything of another brigade behind what is here.
    pub(crate) fn append(self, other: Self) {
        // SAFETY: both are live (`borrow`) and of one connection.
        unsafe { sys::offload_append(self.raw(), other.raw()) };
    }

    /// Destroys what is in it.
    pub(crate) fn clear(self) {
        // SAFETY: the brigade is live (`borrow`).
        unsafe { sys::apr_brigade_cleanup(self.raw().cast()) };
    }

    /// Puts a switch at its beginning: it is thrown when everything before it has been given to the kernel.
    pub(crate) fn put_switch(self, switch: Switch) {
        let bucket = self.switch_bucket(switch);
        // SAFETY: the bucket was made just now; the brigade is live (`borrow`).
        unsafe { sys::offload_insert_head(self.raw(), bucket) };
    }

    fn switch_bucket(self, switch: Switch) -> *mut sys::apr_bucket {
        let data = Box::into_raw(Box::new(switch));
        // SAFETY: the brigade's allocator is live; the bucket owns `data`, and `throw` takes it back once.
        unsafe { sys::offload_bucket_make(&raw const SWITCH.0, data.cast(), self.alloc()) }
    }

    /// Puts a bucket without bytes at its end: TLS writes what it would keep back for more.
    pub(crate) fn put_nudge(self) {
        let bucket = self.switch_bucket(Switch::Nothing);
        // SAFETY: the bucket was made just now; the brigade is live (`borrow`).
        unsafe { sys::offload_insert_tail(self.raw(), bucket) };
    }

    /// What is in it is to be written before the call returns.
    pub(crate) fn put_flush(self) {
        // SAFETY: the brigade's allocator is live.
        let bucket = unsafe { sys::apr_bucket_flush_create(self.alloc()) };
        // SAFETY: the bucket was made just now.
        unsafe { sys::offload_insert_tail(self.raw(), bucket) };
    }

    /// Has the parts of files sent in a way that holds no worker.
    pub(crate) fn send_files_directly(self, request: Request<'_>, may_sendfile: bool) {
        for bucket in self.buckets().filter(|&bucket| kind(bucket) == Kind::File) {
            // SAFETY: a bucket of this kind, live in the brigade, of a response of the request.
            unsafe {
                sys::offload_send_directly(bucket.as_ptr(), request.raw(), may_sendfile.into());
            }
        }
    }

    /// Takes all bytes out of it and gives them to `write`, piece by piece; no flush is left in it.
    ///
    /// # Errors
    /// The bytes could not be made, or `write` failed; what it was not given is still there.
    pub(crate) fn pour(
        self,
        mut write: impl FnMut(&[u8]) -> Result<(), Status>,
    ) -> Result<(), Status> {
        // To read a bucket may put another one behind it.
        let mut next = self.buckets().next();
        while let Some(bucket) = next {
            match kind(bucket) {
                Kind::Memory | Kind::File => write(read(bucket)?)?,
                Kind::Flush => {}
                _ => {
                    // SAFETY: the bucket is in the brigade.
                    let after = unsafe { sys::offload_bucket_next(self.raw(), bucket.as_ptr()) };
                    next = NonNull::new(after);
                    continue;
                }
            }
            // SAFETY: the bucket is in the brigade.
            let after = unsafe { sys::offload_bucket_next(self.raw(), bucket.as_ptr()) };
            // SAFETY: as above; nobody has kept its bytes.
            unsafe { sys::offload_bucket_delete(bucket.as_ptr()) };
            next = NonNull::new(after);
        }
        Ok(())
    }

    /// Where the parts of files in it end: descriptors, which are open as long as the buckets' request, and
    /// offsets.
    pub(super) fn file_ends(self) -> Vec<(RawFd, i64)> {
        let files = self.buckets().filter(|&bucket| kind(bucket) == Kind::File);
        let ends = files.map(|bucket| {
            let mut end = 0;
            // SAFETY: a bucket of this kind, live in the brigade; `end` is writable.
            let file = unsafe { sys::offload_file_end(bucket.as_ptr(), &raw mut end) };
            (file, end)
        });
        ends.collect()
    }

    /// Puts a part of a file at its beginning. The file must stay open until the request ends.
    pub(crate) fn put_file(
        self,
        file: BorrowedFd<'_>,
        start: u64,
        length: u64,
        request: Request<'_>,
    ) {
        let (Ok(start), Ok(length)) = (i64::try_from(start), usize::try_from(length)) else {
            return;
        };
        // SAFETY: the request is live.
        let bucket =
            unsafe { sys::offload_file_part(file.as_raw_fd(), start, length, request.raw()) };
        // SAFETY: the bucket was made just now; the brigade is live (`borrow`).
        unsafe { sys::offload_insert_head(self.raw(), bucket) };
    }
}

pub(super) fn kind(bucket: NonNull<sys::apr_bucket>) -> Kind {
    // SAFETY: a bucket of a brigade is live, and has a type.
    match unsafe { sys::offload_bucket_kind(bucket.as_ptr()) }.cast_unsigned() {
        sys::offload_kind_OFFLOAD_MEMORY => Kind::Memory,
        sys::offload_kind_OFFLOAD_FILE => Kind::File,
        sys::offload_kind_OFFLOAD_EOS => Kind::Eos,
        sys::offload_kind_OFFLOAD_EOR => Kind::Eor,
        sys::offload_kind_OFFLOAD_EOC => Kind::Eoc,
        sys::offload_kind_OFFLOAD_FLUSH => Kind::Flush,
        _ => Kind::Other,
    }
}

/// The bytes of a bucket, which may become shorter for it; good until it is changed.
fn read<'b>(bucket: NonNull<sys::apr_bucket>) -> Result<&'b [u8], Status> {
    let (mut data, mut length) = (ptr::null(), 0);
    // SAFETY: a bucket of a brigade is live.
    let kind = unsafe { (*bucket.as_ptr()).type_ };
    // SAFETY: a bucket's type is static.
    let read = unsafe { (*kind).read }.ok_or(BROKEN)?;
    // SAFETY: the bucket is live, and both places are writable.
    checked(unsafe {
        read(bucket.as_ptr(), &raw mut data, &raw mut length, sys::apr_read_type_e_APR_BLOCK_READ)
    })?;
    if data.is_null() || length == 0 {
        return Ok(&[]);
    }
    // SAFETY: APR promises so many bytes there, until the bucket is changed or destroyed.
    Ok(unsafe { std::slice::from_raw_parts(data.cast(), length) })
}

/// The kind of bucket that throws a switch when it is destroyed: after everything before it is written.
struct SwitchType(sys::apr_bucket_type_t);

// SAFETY: it is never changed, and what it points to is static.
unsafe impl Sync for SwitchType {}

static SWITCH: SwitchType = SwitchType(sys::apr_bucket_type_t {
    name: c"OFFLOAD_SWITCH".as_ptr(),
    num_func: 5,
    is_metadata: sys::apr_bucket_type_t_APR_BUCKET_METADATA,
    destroy: Some(throw),
    read: Some(read_nothing),
    setaside: Some(sys::apr_bucket_setaside_noop),
    split: Some(sys::apr_bucket_split_notimpl),
    copy: Some(sys::apr_bucket_copy_notimpl),
});

unsafe extern "C" fn throw(data: *mut c_void) {
    guard((), report_start, || {
        // SAFETY: `put_switch` made it a Box, and a bucket is destroyed once.
        let switch = unsafe { Box::from_raw(data.cast::<Switch>()) };
        switch.throw();
    });
}

unsafe extern "C" fn read_nothing(
    _bucket: *mut sys::apr_bucket,
    text: *mut *const libc::c_char,
    length: *mut usize,
    _block: sys::apr_read_type_e,
) -> Status {
    guard(BROKEN, report_start, || {
        // SAFETY: APR passes two writable places.
        unsafe { *text = ptr::null() };
        // SAFETY: as above.
        unsafe { *length = 0 };
        sys::APR_SUCCESS.cast_signed()
    })
}

/// Which one of httpd's numbers a boolean is.
pub(super) fn number(truth: bool) -> c_int {
    truth.into()
}
