//! Binds the module to the installed httpd.

use std::env;
use std::path::PathBuf;

/// What the fence uses of httpd and APR; nothing else is bound.
const ALLOWED: &[&str] = &[
    "request_rec",
    "server_rec",
    "process_rec",
    "cmd_parms",
    "command_rec",
    "module",
    "ap_filter_t",
    "ap_filter_rec_t",
    "ap_custom_response",
    "ap_directive_t",
    "ap_index_of_response",
    "ap_auth_type",
    "ap_expr_exec",
    "ap_expr_parse_cmd_mi",
    "ap_set_module_config",
    "ap_add_output_filter_handle",
    "ap_bucket_error_create",
    "ap_conftree",
    "ap_filter_type",
    "ap_get_conn_socket",
    "ap_hook_child_init",
    "ap_hook_child_status",
    "ap_hook_fixups",
    "ap_hook_handler",
    "ap_hook_monitor",
    "ap_hook_insert_error_filter",
    "ap_hook_insert_filter",
    "ap_hook_post_config",
    "ap_hook_pre_close_connection",
    "ap_hook_protocol_switch",
    "ap_mpm_query",
    "AP_MPMQ_(IS_ASYNC|MAX_DAEMONS|MAX_THREADS)",
    "ap_pass_brigade",
    "ap_register_output_filter",
    "ap_save_brigade",
    "ap_set_content_type",
    "ap_ssl_conn_is_ssl",
    "ap_state_query",
    "apr_brigade_(cleanup|create|partition|split_ex)",
    "apr_bucket",
    "apr_bucket_brigade",
    "apr_bucket_flush_create",
    "apr_bucket_(copy|split)_notimpl",
    "apr_bucket_setaside_noop",
    "apr_bucket_type_t",
    "apr_os_sock_(get|t)",
    "apr_palloc",
    "apr_pool_(clear|create_ex)",
    "apr_pool_cleanup_null",
    "apr_pool_cleanup_register",
    "apr_pool_pre_cleanup_register",
    "apr_pool_userdata_get",
    "apr_pool_userdata_setn",
    "apr_table_clear",
    "apr_table_get",
    "apr_table_setn",
    "apr_read_type_e",
    "apr_status_t",
    "offload_append",
    "offload_bucket_.*",
    "offload_drain",
    "offload_file_(end|part)",
    "offload_forbids_sendfile",
    "offload_insert_(head|tail)",
    "offload_kind",
    "offload_log_request",
    "offload_send_directly",
    "offload_log_server",
    "offload_error_document",
    "offload_send_body",
    "ap_conn_keepalive_e",
    "conn_rec",
    "server_addr_rec",
    "APLOG_(ERR|WARNING|NOTICE|INFO)",
    "pid_t",
    "ap_generation_t",
    "APR_(ECONNABORTED|EGENERAL|EOF|ENOTIMPL|INCOMPLETE)",
    "APR_(SUCCESS|HOOK_FIRST|HOOK_LAST|HOOK_MIDDLE|HOOK_REALLY_LAST)",
    "apr_filetype_e",
    "AP_EXPR_FLAG_(DONT_VARY|RESTRICTED)",
    "AP_SQ_(MAIN_STATE|MS_CREATE_PRE_CONFIG)",
    "DECLINED",
    "HTTP_(OK|TEMPORARY_REDIRECT|INTERNAL_SERVER_ERROR)",
    "MODULE_MAGIC_(COOKIE|NUMBER_MAJOR|NUMBER_MINOR)",
    "M_GET",
    "OK",
    "OR_(LIMIT|OPTIONS)",
    "RSRC_CONF",
    "ACCESS_CONF",
    "mpm_child_status",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/ffi/shim.h");
    // httpd closes its modules at each restart and opens them again; Rust's standard library keeps
    // thread-local destructors and cannot be taken out of a process.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // An older copy of the module may still be in the process, under another file name: each must mean
    // its own record when it says `offload_module`.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-Bsymbolic");
    let to = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("httpd.rs");
    let built = apxs_build::Httpd::ask().and_then(|httpd| {
        httpd.compile_shim("src/ffi/shim.c")?;
        httpd.write_bindings("src/ffi/shim.h", ALLOWED, &to)
    });
    apxs_build::finish(built);
}
