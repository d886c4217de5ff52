//! The pair of filters that lets a download with TLS hold no worker.
//!
//! mod_ssl turns a file into memory (so does httpd itself where sendfile is forbidden), and httpd makes a worker wait when more than 64 KB of memory is not
//! written. So the upper filter of the pair, above TLS, **holds** the file back, with everything behind it,
//! the end of the request included. The lower one lies below httpd's own last filter, where the event MPM
//! looks for the last filter of all when a connection can be written to (event.c, `process_socket`,
//! CONN_STATE_WRITE_COMPLETION): it lets httpd write what it has, then **feeds** a little of what is held
//! through TLS, as long as the kernel takes it. No thread waits meanwhile.
//!
//! What is held is passed on at once, and somebody waits after all, when a filter above asks for a flush,
//! or has more in memory than httpd itself would keep.

use std::cell::Cell;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

use nix::sys::stat::fstat;

use super::filter::{BROKEN, Brigade, Kind, Status, checked, code, kind};
use super::guard::guard;
use super::module::report_start;
use super::pool::Pool;
use super::request::Request;
use super::sys;

/// So much goes through TLS at a time: less than what httpd would make a worker wait for.
const PIECE: u64 = 48 << 10;
/// So many pieces at a time: then another connection has its turn.
const PIECES: usize = 32;
/// What may be held in memory.
const MEMORY: u64 = 64 << 10;

static HOLD: AtomicPtr<sys::ap_filter_rec_t> = AtomicPtr::new(ptr::null_mut());
static FEED: AtomicPtr<sys::ap_filter_rec_t> = AtomicPtr::new(ptr::null_mut());

pub(super) fn register() {
    // Above mod_ssl, which is AP_FTYPE_CONNECTION + 5 (ssl_engine_io.c), and below httpd's own last one.
    let places = [
        (&HOLD, c"OFFLOAD_HOLD", hold as Filter, sys::ap_filter_type_AP_FTYPE_CONNECTION + 3),
        (&FEED, c"OFFLOAD_FEED", feed as Filter, sys::ap_filter_type_AP_FTYPE_NETWORK + 1),
    ];
    for (place, name, function, kind) in places {
        // SAFETY: httpd registers filters while it reads its configuration, with one thread; the name is
        // static.
        let record =
            unsafe { sys::ap_register_output_filter(name.as_ptr(), Some(function), None, kind) };
        place.store(record, Ordering::Relaxed);
    }
}

type Filter = unsafe extern "C" fn(*mut sys::ap_filter_t, *mut sys::apr_bucket_brigade) -> Status;

/// What a connection's pair has in common. It lives in the connection's pool.
struct Pair {
    connection: *mut sys::conn_rec,
    upper: Cell<*mut sys::ap_filter_t>,
    lower: Cell<*mut sys::ap_filter_t>,
    /// What is held, and what of it is being fed.
    held: Brigade<'static>,
    piece: Brigade<'static>,
    /// What the held buckets need to live longer than the call that brought them; cleared when nothing is
    /// held.
    keeper: *mut sys::apr_pool_t,
    /// Whether the response that is being written is one to hold.
    is_holding: Cell<bool>,
}

impl Request<'_> {
    /// Has the response held above TLS from here to its end. Whether that can be.
    pub(crate) fn hold_response(self) -> bool {
        let connection = self.connection();
        let pair = find(connection).or_else(|| self.add_pair(connection));
        // SAFETY: a pair lives as long as its connection.
        let Some(pair) = pair.map(|pair| unsafe { pair.as_ref() }) else { return false };
        pair.is_holding.set(true);
        true
    }

    fn add_pair(self, connection: *mut sys::conn_rec) -> Option<NonNull<Pair>> {
        // SAFETY: a request's connection is live.
        let pool = unsafe { (*connection).pool };
        // SAFETY: it has a pool, and this thread alone works on it now.
        let pool = unsafe { Pool::borrow(pool) }?;
        let mut keeper = ptr::null_mut();
        // SAFETY: the connection's pool is live, `keeper` is writable.
        checked(unsafe {
            sys::apr_pool_create_ex(&raw mut keeper, pool.raw(), None, ptr::null_mut())
        })
        .ok()?;
        // SAFETY: the connection is what the pool belongs to.
        let held = unsafe { Brigade::made(pool, connection) }?;
        // SAFETY: as above.
        let piece = unsafe { Brigade::made(pool, connection) }?;
        let pair = NonNull::new(pool.own(Pair {
            connection,
            upper: Cell::new(ptr::null_mut()),
            lower: Cell::new(ptr::null_mut()),
            held,
            piece,
            keeper,
            is_holding: Cell::new(false),
        }))?;
        let add = |record: &AtomicPtr<sys::ap_filter_rec_t>| {
            // SAFETY: the records are httpd's own; it puts the filter into the connection's chain and that of
            // the request (util_filter.c).
            unsafe {
                sys::ap_add_output_filter_handle(
                    record.load(Ordering::Relaxed),
                    pair.as_ptr().cast(),
                    self.raw(),
                    connection,
                )
            }
        };
        let (upper, lower) = (add(&HOLD), add(&FEED));
        // SAFETY: the pair was made just now, and lives as long as the connection.
        let made = unsafe { pair.as_ref() };
        made.upper.set(upper);
        made.lower.set(lower);
        Some(pair)
    }
}

/// Whether a file ends before a part of it does that was to be sent.
fn is_short((file, end): (RawFd, i64)) -> bool {
    // SAFETY: the request that opened the file is there, and so is its descriptor.
    let file = unsafe { BorrowedFd::borrow_raw(file) };
    fstat(file).is_ok_and(|found| found.st_size < end)
}

/// The pair of a connection.
fn find(connection: *mut sys::conn_rec) -> Option<NonNull<Pair>> {
    let record = HOLD.load(Ordering::Relaxed);
    // SAFETY: a connection that is live has a chain of live filters.
    let mut next = unsafe { (*connection).output_filters };
    while !next.is_null() {
        // SAFETY: as above.
        if unsafe { (*next).frec } == record {
            // SAFETY: as above; the context of this filter is its pair.
            return NonNull::new(unsafe { (*next).ctx }.cast());
        }
        // SAFETY: as above.
        next = unsafe { (*next).next };
    }
    None
}

unsafe extern "C" fn hold(
    filter: *mut sys::ap_filter_t,
    brigade: *mut sys::apr_bucket_brigade,
) -> Status {
    guard(BROKEN, report_start, || {
        // SAFETY: httpd passes our own live filter.
        let context = unsafe { (*filter).ctx };
        // SAFETY: its context is the pair, which lives as long as the connection.
        let pair = unsafe { context.cast::<Pair>().as_ref() };
        // SAFETY: httpd passes a brigade that is ours for the call.
        match (pair, unsafe { Brigade::borrow(brigade) }) {
            (Some(pair), Some(brigade)) => code(pair.hold(brigade)),
            _ => BROKEN,
        }
    })
}

unsafe extern "C" fn feed(
    filter: *mut sys::ap_filter_t,
    brigade: *mut sys::apr_bucket_brigade,
) -> Status {
    guard(BROKEN, report_start, || {
        // SAFETY: httpd passes our own live filter.
        let context = unsafe { (*filter).ctx };
        // SAFETY: its context is the pair, which lives as long as the connection.
        let pair = unsafe { context.cast::<Pair>().as_ref() };
        match pair {
            // httpd's own last filter passes nothing on.
            Some(pair) if brigade.is_null() => code(pair.feed()),
            _ => BROKEN,
        }
    })
}

impl Pair {
    fn is_aborted(&self) -> bool {
        // SAFETY: the pair lives in the connection's pool.
        unsafe { (*self.connection).aborted != 0 }
    }

    /// Whether httpd's own last filter has something that the kernel does not take now.
    fn is_full(&self) -> bool {
        // SAFETY: the pair lives in the connection's pool.
        unsafe { (*self.connection).data_in_output_filters != 0 }
    }

    fn set_full(&self, full: bool) {
        // SAFETY: the pair lives in the connection's pool; this thread alone works on it now.
        unsafe { (*self.connection).data_in_output_filters = super::filter::number(full) };
    }

    /// Passes on to TLS.
    fn pass(&self, brigade: Brigade<'_>) -> Result<(), Status> {
        // SAFETY: the filters of a connection live as long as it.
        let next = unsafe { (*self.upper.get()).next };
        // SAFETY: as above; there is at least httpd's own last filter behind ours.
        checked(unsafe { sys::ap_pass_brigade(next, brigade.raw()) })
    }

    /// Lets httpd's own last filter write what it has.
    fn drain(&self) -> Result<(), Status> {
        let lower = self.lower.get();
        // SAFETY: a live connection has a chain of live filters, and ours is in it.
        let mut above = unsafe { (*self.connection).output_filters };
        loop {
            if above.is_null() {
                return Err(BROKEN);
            }
            // SAFETY: as above.
            let next = unsafe { (*above).next };
            if next == lower {
                break;
            }
            above = next;
        }
        // SAFETY: the filter above ours is httpd's own last one, which understands that there is no brigade.
        checked(unsafe { sys::offload_drain(above) })
    }

    /// What is held cannot be sent: half a response must not look like a whole one, neither to the client nor
    /// in the logs, which are written when the end of the request is destroyed.
    fn give_up(&self, why: Status) -> Status {
        // SAFETY: the pair lives in the connection's pool; this thread alone works on it now.
        unsafe { (*self.connection).aborted = 1 };
        self.let_go();
        why
    }

    /// Nothing is held any more, or it is of no use.
    fn let_go(&self) {
        self.is_holding.set(false);
        self.held.clear();
        // SAFETY: whatever was kept in the pool belonged to buckets that are gone.
        unsafe { sys::apr_pool_clear(self.keeper) };
    }

    fn hold(&self, brigade: Brigade<'_>) -> Result<(), Status> {
        let is_new = self.held.is_empty();
        let ends = brigade.buckets().any(|bucket| kind(bucket) == Kind::Eoc);
        if self.is_aborted() || (ends && !is_new) {
            // The connection ends before the response did: the client is gone, or somebody has lost patience.
            // Nobody may wait for what is held now. It goes first: an end of the request behind it is the end
            // of what lies before.
            let why = self.give_up(sys::APR_ECONNABORTED.cast_signed());
            brigade.clear();
            return Err(why);
        }
        if is_new && (ends || !self.is_holding.get()) {
            return self.pass(brigade);
        }
        let census = brigade.census();
        if census.unknown {
            // To keep it one would have to read it.
            self.release()?;
            return self.pass(brigade);
        }
        let mut held = self.held.raw();
        let mut from = brigade.raw();
        // SAFETY: both brigades are of this connection, and the pool lives until nothing is held.
        checked(unsafe {
            sys::ap_save_brigade(self.upper.get(), &raw mut held, &raw mut from, self.keeper)
        })
        // It says so of a foreign bucket that needs no care, after it has saved everything.
        .or_else(|why| if why == sys::APR_ENOTIMPL.cast_signed() { Ok(()) } else { Err(why) })
        .map_err(|why| self.give_up(why))?;
        if census.flushes || self.held.census().memory > MEMORY {
            return self.release();
        }
        if is_new { self.feed_some() } else { Ok(()) }
    }

    /// Passes on all that is held; httpd makes this thread wait where it must.
    fn release(&self) -> Result<(), Status> {
        while !self.held.is_empty() {
            self.pass_piece(u64::MAX)?;
        }
        Ok(())
    }

    /// Passes on so much of what is held, or what has no bytes.
    fn pass_piece(&self, most: u64) -> Result<(), Status> {
        // What is behind the piece comes back as what is held. What has no bytes goes by itself: so the
        // request is there until its files have been looked at again.
        let bytes = self.held.census().bytes();
        let piece = if bytes == 0 { u64::MAX } else { bytes.min(most) };
        self.held.split(piece, self.piece).map_err(|why| self.give_up(why))?;
        let ends = self.held.census().closes;
        let files = self.held.file_ends();
        let passed = self.pass(self.held);
        self.held.append(self.piece);
        passed.map_err(|why| self.give_up(why))?;
        if files.into_iter().any(is_short) {
            // TLS takes the end of a file for the end of the response, and the client would take the next
            // one for the rest of this one.
            return Err(self.give_up(sys::APR_EOF.cast_signed()));
        }
        if ends && self.held.is_empty() {
            self.let_go();
        }
        Ok(())
    }

    /// The event MPM has found that the connection can be written to.
    fn feed(&self) -> Result<(), Status> {
        self.drain().map_err(|why| self.give_up(why))?;
        self.feed_some()
    }

    fn feed_some(&self) -> Result<(), Status> {
        for _ in 0..PIECES {
            if self.is_full() || self.held.is_empty() {
                break;
            }
            self.pass_piece(PIECE)?;
            self.drain().map_err(|why| self.give_up(why))?;
        }
        if !self.held.is_empty() {
            self.set_full(true);
        }
        Ok(())
    }
}
