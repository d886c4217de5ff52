//! The rows of the configuration language as httpd's command table, with one setter for all.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use offload_core::directive::{Contexts, HOST_ROWS, HostLayer, Layer, Row, SECTION_ROWS};
use offload_core::placement::Host;
use offload_core::setting::Context;

use super::guard::guard;
use super::log::Level;
use super::pool::Pool;
use super::server::{self, Server};
use super::{expression, sys};

const BROKEN: &CStr = c"mod_offload failed to read this directive; the error log says where";

/// httpd's table; it ends with an empty row.
#[repr(transparent)]
pub(super) struct Table([sys::command_rec; COUNT + 1]);

const COUNT: usize = SECTION_ROWS.len() + HOST_ROWS.len();

// SAFETY: httpd only reads the table, and everything that it points to is static and never changes.
unsafe impl Sync for Table {}

impl Table {
    pub(super) const fn first(&'static self) -> *const sys::command_rec {
        self.0.as_ptr()
    }
}

pub(super) static COMMANDS: Table = {
    let mut commands = [END; COUNT + 1];
    let mut index = 0;
    while index < COUNT {
        commands[index] = match index.checked_sub(SECTION_ROWS.len()) {
            None => command(&SECTION_ROWS[index]),
            Some(index) => command(&HOST_ROWS[index]),
        };
        index += 1;
    }
    Table(commands)
};

const END: sys::command_rec = sys::command_rec {
    name: ptr::null(),
    func: sys::cmd_func { no_args: None },
    cmd_data: ptr::null_mut(),
    req_override: 0,
    args_how: sys::cmd_how_RAW_ARGS,
    errmsg: ptr::null(),
};

const fn command(row: &'static Row) -> sys::command_rec {
    sys::command_rec {
        name: row.name.as_ptr(),
        func: sys::cmd_func { take_argv: Some(set) },
        cmd_data: ptr::from_ref(row).cast_mut().cast(),
        req_override: match row.contexts {
            Contexts::Everywhere => sys::OR_OPTIONS.cast_signed(),
            // Inside <Limit> httpd allows only what belongs to access.
            Contexts::Sections => (sys::OR_OPTIONS | sys::OR_LIMIT).cast_signed(),
            Contexts::Hosts | Contexts::Server => sys::RSRC_CONF.cast_signed(),
        },
        args_how: sys::cmd_how_TAKE_ARGV,
        errmsg: row.help.as_ptr(),
    }
}

/// Takes one statement into what its section says. Runs while httpd reads its configuration, and in a
/// child while it reads a .htaccess file.
unsafe extern "C" fn set(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    argc: c_int,
    argv: *const *mut c_char,
) -> *const c_char {
    let report = |line: &str| {
        // SAFETY: httpd passes live parms with a live server.
        let server = unsafe { (*parms).server };
        // SAFETY: as above.
        unsafe { server::log(server, Level::Error, line) };
    };
    guard(BROKEN.as_ptr(), report, || {
        // SAFETY: httpd passes what `create_dir_config` returned for this section, and nobody else uses it
        // while the section is read.
        let Some(layer) = (unsafe { section.cast::<Layer>().as_mut() }) else {
            return BROKEN.as_ptr();
        };
        // SAFETY: httpd passes the parms, and argc words in argv, for this call.
        match unsafe { take(parms, layer, argc, argv) } {
            Ok(()) => ptr::null(),
            Err(sentence) => {
                // SAFETY: httpd passes live parms.
                let pool = unsafe { (*parms).pool };
                // SAFETY: parms->pool lives longer than the call, and this thread alone uses it now.
                unsafe { Pool::borrow(pool) }
                    .map_or(BROKEN.as_ptr(), |pool| pool.string(&[&sentence]))
            }
        }
    })
}

/// # Safety
/// `parms` and the `argc` words in `argv` are what httpd passed to the setter.
unsafe fn take(
    parms: *mut sys::cmd_parms,
    layer: &mut Layer,
    argc: c_int,
    argv: *const *mut c_char,
) -> Result<(), String> {
    // SAFETY: httpd passes the command that it found in COMMANDS.
    let command = unsafe { (*parms).cmd };
    // SAFETY: as above.
    let data = unsafe { (*command).cmd_data };
    // SAFETY: cmd_data is the static row that `command` put there.
    let row = unsafe { data.cast::<Row>().as_ref() }.ok_or("has no row")?;
    // SAFETY: httpd passes live parms.
    let pool = unsafe { (*parms).pool };
    // SAFETY: httpd passes live parms.
    let temp_pool = unsafe { (*parms).temp_pool };
    // For a .htaccess file they are one (core.c, ap_check_cmd_context).
    let in_htaccess = pool == temp_pool;

    // httpd drops the words beyond this one without a word (config.c, AP_MAX_ARGC).
    if argc >= 64 {
        return Err(format!(
            "{} takes at most 63 words on a line; repeat the directive",
            row.name.to_string_lossy()
        ));
    }
    let mut words = Vec::new();
    for index in 0..usize::try_from(argc).unwrap_or(0) {
        // SAFETY: the caller promises argc words.
        let word = unsafe { argv.add(index) };
        // SAFETY: as above.
        let word = unsafe { word.read() };
        // SAFETY: each word ends with a NUL and lives as long as the call.
        let word = unsafe { super::bytes(word) }.unwrap_or_default();
        words.push(std::str::from_utf8(word).map_err(|_| {
            format!("{}: '{}' is not UTF-8", row.name.to_string_lossy(), word.escape_ascii())
        })?);
    }
    // SAFETY: httpd passes live parms.
    let raw = unsafe { (*parms).server };
    // SAFETY: the server lives longer than the reading of its configuration.
    let server = unsafe { Server::borrow(raw) }.ok_or("has no server")?;
    if row.contexts == Contexts::Server && server.is_virtual() {
        return Err(format!(
            "{} is about the whole server; it cannot stand in <VirtualHost>",
            row.name.to_string_lossy()
        ));
    }
    // SAFETY: httpd passes live parms.
    let limited = unsafe { (*parms).limited };
    // SAFETY: httpd passes live parms.
    let directive = unsafe { (*parms).directive };
    // SAFETY: it points to the directive that is being set, or nowhere.
    let directive = unsafe { directive.as_ref() };
    // SAFETY: httpd passes live parms.
    let folder = unsafe { (*parms).path };
    // SAFETY: a path ends with a NUL and lives as long as the section.
    let folder = unsafe { super::bytes(folder) };
    let context = Context {
        // SAFETY: the caller promises parms of a running setter.
        compile: &|text| unsafe { expression::compile(parms, text, in_htaccess) },
        section: &|| section(server, directive, folder, in_htaccess),
        server: &|| server.name(),
        methods: limited.cast_unsigned(),
    };
    if in_htaccess {
        // It is read while requests are served: it says nothing to the virtual host.
        let mut nobody = HostLayer::default();
        return row.say(layer, &mut nobody, &words, &context).map_err(|sentence| {
            // httpd names the line itself, but not for a .htaccess file.
            let line = directive.map_or(0, |directive| directive.line_num);
            format!("line {line}: {sentence}")
        });
    }
    // SAFETY: outside of .htaccess files setters run only while httpd reads its configuration, one after the
    // other.
    let state = unsafe { server.state_mut() }.ok_or("has no virtual host")?;
    row.say(layer, &mut state.layer, &words, &context)?;
    let named = layer.hosts().iter().filter(|host| host.address().is_none());
    state.remember_host_names(named.map(Host::name));
    state.remember_sections(layer.max_concurrent());
    state.remember_choke(layer);
    Ok(())
}

/// A section with those around it, by a name that is the same after a restart; `None` outside of sections.
fn section(
    server: Server<'_>,
    directive: Option<&sys::ap_directive_t>,
    folder: Option<&[u8]>,
    in_htaccess: bool,
) -> Option<String> {
    let folder = folder?;
    let mut sections = Vec::new();
    let mut next = directive.map_or(ptr::null_mut(), |directive| directive.parent);
    // SAFETY: httpd keeps the tree of directives while it sets them; a parent is NULL or live.
    while let Some(parent) = unsafe { next.as_ref() } {
        // SAFETY: the texts of a directive end with a NUL and live as long as it.
        let name = unsafe { super::bytes(parent.directive) }.unwrap_or_default();
        // SAFETY: as above.
        let words = unsafe { super::bytes(parent.args) }.unwrap_or_default();
        // Methods are told apart elsewhere, and the virtual host has a name.
        let silent = [b"<Limit".as_slice(), b"<VirtualHost"];
        if !silent.iter().any(|prefix| {
            name.get(..prefix.len()).is_some_and(|name| name.eq_ignore_ascii_case(prefix))
        }) {
            sections.push([name, b" ", words].concat());
        }
        next = parent.parent;
    }
    sections.reverse();
    let sections = sections.join(&b' ');
    // SAFETY: as above.
    let file = directive.and_then(|directive| unsafe { super::bytes(directive.filename) });
    let place = match file.filter(|_| in_htaccess) {
        // One section of a .htaccess file is not the same one in another folder.
        Some(file) => [file, b" ", &sections].concat(),
        None if sections.is_empty() => folder.to_owned(),
        None => sections,
    };
    Some(format!("{} of {}", String::from_utf8_lossy(&place).trim_end(), server.name()))
}
