//! `mod_offload.so`: redirects downloads from the server that owns the files to offload hosts, limits how
//! many of them, and of any other requests, there are at a time, and throttles them.
//!
//! # The life of a request
//!
//! 1. httpd starts, reads the configuration, and hands each directive to [`ffi::commands`], which lets
//!    `offload_core::directive` read it into what its section says.
//! 2. [`hooks::post_config`] looks up the offload hosts' names, and makes the memory that all children
//!    share.
//! 3. A child begins, and claims its place in the ledger ([`hooks::child_init`]). It gets a request:
//!    translation and access control are other modules' business. httpd merges what the sections of the
//!    request's file say. [`hooks::fixups`] comes last of its kind: [`admit`] asks the ledger for every limit
//!    that concerns the request, and lets it in or refuses it. What it holds is a [`lease::Lease`], given
//!    back by Drop; what a dead child held, by [`hooks::child_exited`].
//! 4. [`hooks::first_handler`] runs before every handler that could answer. It gathers facts, lets
//!    `offload_core::verdict` walk the checklist and `offload_core::placement` choose a host.
//! 5. [`hooks::last_handler`] runs just before httpd's own handler for files. If a host was chosen, and no
//!    other module has taken the request, it answers 307; else it declines, as if the module were not
//!    there.
//!
//!
//! Meanwhile, if the section throttles, [`choke`] has put a filter into the response's way
//! ([`hooks::insert_filter`]): it decides how the response is held, counts what goes by, and switches the
//! socket's rate in [`pacer`] when the burst is over. The response ends when httpd destroys the request, which
//! it does when the last byte has been given to the kernel. [`pacer`] has the child's one thread; it divides
//! rates that connections share, and waits for the last byte to reach the client.
//!
//! `ffi` is the fence around everything unsafe; the rest is safe code and knows no pointer.
#![deny(unsafe_code)]

mod admit;
mod choke;
#[allow(unsafe_code)] // the fence; see its rules
mod ffi;
mod hooks;
mod lease;
mod pacer;
mod process;
mod resolver;
mod spool;
mod status;
