/* The macros of httpd that bindgen cannot see, as functions. */
#include "shim.h"

extern module AP_MODULE_DECLARE_DATA offload_module;
APLOG_USE_MODULE(offload);

apr_status_t offload_send_body(request_rec *r, const char *text, apr_size_t length)
{
    apr_bucket_alloc_t *alloc = r->connection->bucket_alloc;
    apr_bucket_brigade *bb = apr_brigade_create(r->pool, alloc);

        /* What was true of the file, or was to work on its bytes, is not meant for these. */
    r->content_encoding = NULL;
    r->content_languages = NULL;
    r->clength = 0;

    r->output_filters = r->proto_output_filters;
    ap_run_insert_error_filter(r);

    APR_BRIGADE_INSERT_TAIL(bb, apr_bucket_pool_create(text, length, r->pool, alloc));
    APR_BRIGADE_INSERT_TAIL(bb, apr_bucket_eos_create(alloc));
    return ap_pass_brigade(r->output_filters, bb);
}

/* Not in a header that modules are given, but exported, and mod_core.h is where httpd declares it. */
extern char *ap_response_code_string(request_rec *r, int error_index);

const char *offload_error_document(request_rec *r, int status)
{
    return ap_response_code_string(r, ap_index_of_response(status));
}

void offload_log_request(const request_rec *r, int level, const char *text)
{
    ap_log_rerror(APLOG_MARK, level, 0, r, "%s", text);
}

void offload_log_server(const server_rec *s, int level, const char *text)
{
    ap_log_error(APLOG_MARK, level, 0, s, "%s", text);
}
