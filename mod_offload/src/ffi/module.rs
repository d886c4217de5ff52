//! The exported module record, the registration of hooks, and their trampolines.

use std::cell::UnsafeCell;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use offload_core::directive::Layer;

use super::commands::COMMANDS;
use super::guard::{self, guard};
use super::log::Level;
use super::pool::Pool;
use super::request::Request;
use super::server::{self, Server, ServerState};
use super::socket::Socket;
use super::{bytes, filter, hold, sys};
use crate::admit;
use crate::hooks::{self, Answer};

/// The module record. httpd writes into it while it loads the module, before it calls anything of ours,
/// and when it unloads it; at no other time.
#[repr(transparent)]
pub(super) struct Record(UnsafeCell<sys::module>);

// SAFETY: httpd writes into the record only while it has a single thread, when it reads its
// configuration (mod_so.c); at all other times it is only read.
unsafe impl Sync for Record {}

impl Record {
    /// Under which number httpd knows the module.
    #[inline]
    pub(super) fn index(&self) -> c_int {
        // SAFETY: nothing of ours runs while httpd writes into the record.
        unsafe { (*self.0.get()).module_index }
    }
}

/// What `LoadModule offload_module` looks for.
#[allow(non_upper_case_globals)] // httpd's naming
#[unsafe(no_mangle)]
pub(super) static offload_module: Record = Record(UnsafeCell::new(sys::module {
    // STANDARD20_MODULE_STUFF of http_config.h
    version: sys::MODULE_MAGIC_NUMBER_MAJOR.cast_signed(),
    minor_version: sys::MODULE_MAGIC_NUMBER_MINOR.cast_signed(),
    module_index: -1,
    name: c"mod_offload.c".as_ptr(),
    dynamic_load_handle: ptr::null_mut(),
    next: ptr::null_mut(),
    magic: sys::MODULE_MAGIC_COOKIE as _,
    rewrite_args: None,
    create_dir_config: Some(create_dir_config),
    merge_dir_config: Some(merge_dir_config),
    create_server_config: Some(create_server_config),
    merge_server_config: Some(merge_server_config),
    cmds: COMMANDS.first(),
    register_hooks: Some(register_hooks),
    flags: 0,
}));

/// The record of the module of Nathan Shafer's that was called choke: `LoadModule choke_module` with this
/// file makes `<IfModule mod_choke.c>` true. The directives themselves belong to `offload_module`.
#[allow(non_upper_case_globals)] // httpd's naming
#[unsafe(no_mangle)]
pub(super) static choke_module: Record = Record(UnsafeCell::new(sys::module {
    version: sys::MODULE_MAGIC_NUMBER_MAJOR.cast_signed(),
    minor_version: sys::MODULE_MAGIC_NUMBER_MINOR.cast_signed(),
    module_index: -1,
    name: c"mod_choke.c".as_ptr(),
    dynamic_load_handle: ptr::null_mut(),
    next: ptr::null_mut(),
    magic: sys::MODULE_MAGIC_COOKIE as _,
    rewrite_args: None,
    create_dir_config: None,
    merge_dir_config: None,
    create_server_config: None,
    merge_server_config: None,
    cmds: ptr::null(),
    register_hooks: None,
    flags: 0,
}));

/// Our entry in a configuration vector, if httpd made one.
///
/// # Safety
/// `vector` is NULL or a configuration vector of httpd which lives for `'a`, and our entries in vectors
/// of its kind are of type `T` and are changed only through what `T` itself synchronises.
pub(super) unsafe fn config<'a, T>(vector: *mut sys::ap_conf_vector_t) -> Option<&'a T> {
    if vector.is_null() {
        return None;
    }
    // SAFETY: the caller promises the vector.
    let entry = unsafe { entry(vector) };
    // SAFETY: the caller promises the type and the life; it is NULL where no section said anything.
    unsafe { entry.cast::<T>().as_ref() }
}

/// Our entry in a configuration vector as it is.
///
/// # Safety
/// `vector` is a live vector of httpd.
pub(super) unsafe fn entry(vector: *mut sys::ap_conf_vector_t) -> *mut c_void {
    // It is no longer negative when httpd makes the first vector.
    let index = offload_module.index().cast_unsigned() as usize;
    // SAFETY: the caller promises the vector, which is an array with an entry for each module: it is read
    // as httpd's own macro ap_get_module_config does it (http_config.h).
    let entry = unsafe { vector.cast::<*mut c_void>().add(index) };
    // SAFETY: as above.
    unsafe { entry.read() }
}

/// Sets our entry in a configuration vector.
///
/// # Safety
/// `vector` is a live vector of httpd, and `entry` lives as long as it and is of the type that `config`
/// is asked for in vectors of its kind.
pub(super) unsafe fn set_config<T>(vector: *mut sys::ap_conf_vector_t, entry: *const T) {
    let index = offload_module.index().cast_unsigned() as usize;
    // SAFETY: the caller promises the vector, which is an array with an entry for each module: it is written
    // as httpd's own macro ap_set_module_config does it (http_config.h).
    let place = unsafe { vector.cast::<*mut c_void>().add(index) };
    // SAFETY: as above.
    unsafe { place.write(entry.cast_mut().cast()) };
}

/// httpd calls this each time it reads its configuration.
unsafe extern "C" fn register_hooks(_pool: *mut sys::apr_pool_t) {
    guard((), report_start, || {
        guard::install();
        filter::register();
        hold::register();
        // Once the configuration is read, before the children are made.
        // SAFETY: the trampoline has the hook's type and, as the module is linked with -z nodelete, stays
        // where it is; there are no lists of predecessors.
        unsafe {
            sys::ap_hook_post_config(
                Some(post_config),
                ptr::null(),
                ptr::null(),
                sys::APR_HOOK_MIDDLE.cast_signed(),
            );
        }

        // SAFETY: as above.
        unsafe {
            sys::ap_hook_child_init(
                Some(child_init),
                ptr::null(),
                ptr::null(),
                sys::APR_HOOK_MIDDLE.cast_signed(),
            );
        }
        // SAFETY: as above.
        unsafe {
            sys::ap_hook_child_status(
                Some(child_status),
                ptr::null(),
                ptr::null(),
                sys::APR_HOOK_MIDDLE.cast_signed(),
            );
        }
        // SAFETY: as above.
        unsafe {
            sys::ap_hook_monitor(
                Some(monitor),
                ptr::null(),
                ptr::null(),
                sys::APR_HOOK_MIDDLE.cast_signed(),
            );
        }
        // After authentication and authorization, and after every other fixup: mod_dir's and mod_rewrite's
        // change what the request is for.
        // SAFETY: as above.
        unsafe {
            sys::ap_hook_fixups(
                Some(fixups),
                ptr::null(),
                ptr::null(),
                sys::APR_HOOK_REALLY_LAST.cast_signed(),
            );
        }
        // The chain of filters is made ready: for what a handler makes, and for an error.
        // SAFETY: as above.
        unsafe {
            sys::ap_hook_insert_filter(
                Some(insert_filter),
                ptr::null(),
                ptr::null(),
                sys::APR_HOOK_LAST.cast_signed(),
            );
        }
        // SAFETY: as above.
        unsafe {
            sys::ap_hook_insert_error_filter(
                Some(insert_filter),
                ptr::null(),
                ptr::null(),
                sys::APR_HOOK_LAST.cast_signed(),
            );
        }
        // Before anybody gives the connection up.
        // SAFETY: as above.
        unsafe {
            sys::ap_hook_pre_close_connection(
                Some(pre_close),
                ptr::null(),
                ptr::null(),
                sys::APR_HOOK_FIRST.cast_signed(),
            );
        }
        // Before the protocol's own module, which serves the whole connection from here.
        // SAFETY: as above.
        unsafe {
            sys::ap_hook_protocol_switch(
                Some(protocol_switch),
                ptr::null(),
                ptr::null(),
                sys::APR_HOOK_FIRST.cast_signed(),
            );
        }
        // After everything that decides who answers: URI translation, access control, fixups with their
        // rewrites, SetHandler and filters.
        // SAFETY: as above.
        unsafe {
            sys::ap_hook_handler(
                Some(first_handler),
                ptr::null(),
                ptr::null(),
                sys::APR_HOOK_FIRST.cast_signed(),
            );
        }
        // Just before httpd's own handler for files: whoever else wanted the request has taken it.
        // SAFETY: as above.
        unsafe {
            sys::ap_hook_handler(
                Some(last_handler),
                ptr::null(),
                ptr::null(),
                sys::APR_HOOK_REALLY_LAST.cast_signed() - 1,
            );
        }
    });
}

unsafe extern "C" fn create_dir_config(
    pool: *mut sys::apr_pool_t,
    _folder: *mut c_char,
) -> *mut c_void {
    guard(ptr::null_mut(), report_start, || {
        // SAFETY: httpd passes the pool that the section lives in.
        unsafe { Pool::borrow(pool) }
            .map_or(ptr::null_mut(), |pool| pool.own(Layer::default()).cast())
    })
}

/// Runs while the configuration is read, and for each request whose file lies in several sections.
unsafe extern "C" fn merge_dir_config(
    pool: *mut sys::apr_pool_t,
    outer: *mut c_void,
    inner: *mut c_void,
) -> *mut c_void {
    // Without what holds for it, a request stays on the base.
    guard(ptr::null_mut(), report_start, || {
        // SAFETY: httpd passes two of our own records, which live at least as long as `pool`; nobody
        // changes them any more.
        let wide = unsafe { outer.cast::<Layer>().as_ref() };
        // SAFETY: as above.
        let narrow = unsafe { inner.cast::<Layer>().as_ref() };
        // SAFETY: httpd passes the pool that the merged record shall live in.
        let pool = unsafe { Pool::borrow(pool) };
        match (pool, wide, narrow) {
            // httpd makes a record for every section around a directive of ours; most say nothing.
            (_, Some(wide), Some(_)) if !wide.says_anything() => inner,
            (_, Some(_), Some(narrow)) if !narrow.says_anything() => outer,
            (Some(pool), Some(wide), Some(narrow)) => merge_layers(pool, wide, narrow).cast(),
            _ => ptr::null_mut(),
        }
    })
}

#[inline(never)]
fn merge_layers(pool: Pool, wide: &Layer, narrow: &Layer) -> *mut Layer {
    pool.own(Layer::merged(wide, narrow))
}

unsafe extern "C" fn create_server_config(
    pool: *mut sys::apr_pool_t,
    _server: *mut sys::server_rec,
) -> *mut c_void {
    guard(ptr::null_mut(), report_start, || {
        // SAFETY: httpd passes the configuration's pool.
        unsafe { Pool::borrow(pool) }
            .map_or(ptr::null_mut(), |pool| pool.own(ServerState::default()).cast())
    })
}

unsafe extern "C" fn merge_server_config(
    pool: *mut sys::apr_pool_t,
    server: *mut c_void,
    host: *mut c_void,
) -> *mut c_void {
    // Without it the virtual host keeps what it said itself.
    guard(host, report_start, || {
        // SAFETY: httpd passes two of our own records, which nobody changes any more.
        let server = unsafe { server.cast::<ServerState>().as_ref() };
        // SAFETY: as above.
        let own = unsafe { host.cast::<ServerState>().as_ref() };
        // SAFETY: httpd passes the configuration's pool.
        match (unsafe { Pool::borrow(pool) }, server, own) {
            (Some(pool), Some(server), Some(own)) => {
                pool.own(ServerState::merged(server, own)).cast()
            }
            _ => host,
        }
    })
}

unsafe extern "C" fn post_config(
    configuration: *mut sys::apr_pool_t,
    _log: *mut sys::apr_pool_t,
    _temporary: *mut sys::apr_pool_t,
    server: *mut sys::server_rec,
) -> c_int {
    guard(sys::HTTP_INTERNAL_SERVER_ERROR.cast_signed(), report_start, || {
        // SAFETY: ap_state_query only reads httpd's own state.
        let state = unsafe { sys::ap_state_query(sys::AP_SQ_MAIN_STATE.cast_signed()) };
        // httpd reads everything twice when it starts; the first time is a rehearsal.
        if state == sys::AP_SQ_MS_CREATE_PRE_CONFIG.cast_signed() {
            return sys::OK.cast_signed();
        }
        // SAFETY: httpd passes the main server, which lives as long as the configuration.
        let server = unsafe { Server::borrow(server) };
        // SAFETY: httpd passes the configuration's pool, which this thread alone uses now.
        let pool = unsafe { Pool::borrow(configuration) };
        if let (Some(main), Some(pool)) = (server, pool) {
            main.all().skip(1).for_each(|host| host.own_state(main, pool));
        }
        match server.map(hooks::post_config) {
            Some(true) => sys::OK.cast_signed(),
            _ => sys::HTTP_INTERNAL_SERVER_ERROR.cast_signed(),
        }
    })
}

unsafe extern "C" fn child_init(pool: *mut sys::apr_pool_t, server: *mut sys::server_rec) {
    guard((), report_start, || {
        // SAFETY: httpd passes the child's pool, which lives as long as the child.
        if let Some(pool) = unsafe { Pool::borrow(pool) } {
            pool.before_its_end(hooks::child_ends);
        }
        // SAFETY: httpd passes the main server, which lives as long as the child.
        if let Some(server) = unsafe { Server::borrow(server) } {
            hooks::child_init(server);
        }
    });
}

/// Runs in the parent.
unsafe extern "C" fn child_status(
    server: *mut sys::server_rec,
    pid: sys::pid_t,
    _generation: sys::ap_generation_t,
    _slot: c_int,
    status: sys::mpm_child_status,
) {
    guard((), report_start, || {
        if status != sys::mpm_child_status_MPM_CHILD_EXITED {
            return;
        }
        // SAFETY: httpd passes the main server of the configuration in force.
        if let (Some(server), Ok(pid)) = (unsafe { Server::borrow(server) }, u32::try_from(pid)) {
            hooks::child_exited(server, pid);
        }
    });
}

/// Runs in the parent, every few seconds.
unsafe extern "C" fn monitor(_pool: *mut sys::apr_pool_t, server: *mut sys::server_rec) -> c_int {
    guard(sys::DECLINED, report_start, || {
        // SAFETY: httpd passes the main server of the configuration in force.
        if let Some(server) = unsafe { Server::borrow(server) } {
            hooks::monitor(server);
        }
        sys::DECLINED
    })
}

unsafe extern "C" fn fixups(r: *mut sys::request_rec) -> c_int {
    // SAFETY: httpd passes a live request.
    unsafe { handle(r, hooks::fixups) }
}

unsafe extern "C" fn insert_filter(r: *mut sys::request_rec) {
    // SAFETY: httpd passes a live request.
    unsafe { handle(r, hooks::insert_filter) };
}

unsafe extern "C" fn pre_close(connection: *mut sys::conn_rec) -> c_int {
    guard(sys::OK.cast_signed(), report_start, || {
        // SAFETY: httpd passes a live connection. A stream's is not the socket's.
        let is_whole = unsafe { (*connection).master.is_null() };
        if is_whole && hooks::watches_closing() {
            // SAFETY: as above.
            unsafe { Socket::of(connection) }.into_iter().for_each(hooks::pre_close);
        }
        sys::OK.cast_signed()
    })
}

/// `r` is NULL where the connection begins with the protocol.
unsafe extern "C" fn protocol_switch(
    _c: *mut sys::conn_rec,
    r: *mut sys::request_rec,
    _s: *mut sys::server_rec,
    protocol: *const c_char,
) -> c_int {
    guard(sys::DECLINED, report_start, || {
        // SAFETY: httpd passes the protocol's name, which ends with a NUL.
        let protocol = unsafe { bytes(protocol) };
        // SAFETY: httpd passes NULL or a live request.
        if let Some(request) = unsafe { Request::borrow(r) } {
            admit::switch(request, protocol.unwrap_or_default());
        }
        sys::DECLINED
    })
}

unsafe extern "C" fn first_handler(r: *mut sys::request_rec) -> c_int {
    // SAFETY: httpd passes a live request.
    unsafe { handle(r, hooks::first_handler) }
}

unsafe extern "C" fn last_handler(r: *mut sys::request_rec) -> c_int {
    // SAFETY: httpd passes a live request.
    unsafe { handle(r, hooks::last_handler) }
}

/// # Safety
/// `r` is the live request that httpd passed to a hook.
unsafe fn handle(r: *mut sys::request_rec, hook: impl FnOnce(Request<'_>) -> Answer) -> c_int {
    let report = |line: &str| {
        // SAFETY: the caller promises a live request; the borrow ends with the hook.
        if let Some(request) = unsafe { Request::borrow(r) } {
            request.log(Level::Error, line);
        }
    };
    guard(sys::HTTP_INTERNAL_SERVER_ERROR.cast_signed(), report, || {
        // SAFETY: the caller promises a live request; the borrow ends with the hook.
        match unsafe { Request::borrow(r) }.map(hook) {
            Some(Answer::Done) => sys::OK.cast_signed(),
            Some(Answer::Refused(status)) => status.into(),
            Some(Answer::Declined) | None => sys::DECLINED,
        }
    })
}

pub(super) fn report_start(line: &str) {
    // SAFETY: without a server httpd writes to the log of the process.
    unsafe { server::log(ptr::null(), Level::Error, line) };
}
