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

int offload_bucket_kind(const apr_bucket *b)
{
    if (!APR_BUCKET_IS_METADATA(b)) {
        return APR_BUCKET_IS_FILE(b) ? OFFLOAD_FILE : OFFLOAD_MEMORY;
    }
    if (APR_BUCKET_IS_EOS(b)) {
        return OFFLOAD_EOS;
    }
    if (AP_BUCKET_IS_EOR(b)) {
        return OFFLOAD_EOR;
    }
    if (AP_BUCKET_IS_EOC(b)) {
        return OFFLOAD_EOC;
    }
    return APR_BUCKET_IS_FLUSH(b) ? OFFLOAD_FLUSH : OFFLOAD_OTHER;
}

apr_bucket *offload_bucket_first(const apr_bucket_brigade *bb)
{
    return APR_BRIGADE_EMPTY(bb) ? NULL : APR_BRIGADE_FIRST(bb);
}

apr_bucket *offload_bucket_next(const apr_bucket_brigade *bb, const apr_bucket *b)
{
    apr_bucket *next = APR_BUCKET_NEXT(b);
    return next == APR_BRIGADE_SENTINEL(bb) ? NULL : next;
}

void offload_bucket_delete(apr_bucket *b)
{
    apr_bucket_delete(b);
}

void offload_insert_head(apr_bucket_brigade *bb, apr_bucket *b)
{
    APR_BRIGADE_INSERT_HEAD(bb, b);
}

void offload_insert_tail(apr_bucket_brigade *bb, apr_bucket *b)
{
    APR_BRIGADE_INSERT_TAIL(bb, b);
}

void offload_append(apr_bucket_brigade *to, apr_bucket_brigade *from)
{
    APR_BRIGADE_CONCAT(to, from);
}

apr_bucket *offload_bucket_make(const apr_bucket_type_t *type, void *data, apr_bucket_alloc_t *alloc)
{
    apr_bucket *b = apr_bucket_alloc(sizeof(*b), alloc);

    APR_BUCKET_INIT(b);
    b->free = apr_bucket_free;
    b->list = alloc;
    b->type = type;
    b->data = data;
    b->length = 0;
    b->start = 0;
    return b;
}

int offload_has_unknown_length(const apr_bucket_brigade *bb)
{
    const apr_bucket *b;

    for (b = APR_BRIGADE_FIRST(bb); b != APR_BRIGADE_SENTINEL(bb); b = APR_BUCKET_NEXT(b)) {
        if (b->length == (apr_size_t)-1) {
            return 1;
        }
    }
    return 0;
}

/* Bytes that are read at once where a file is not mapped. */
#define OFFLOAD_READ_SIZE (32 * 1024)

int offload_forbids_sendfile(const request_rec *r)
{
    const core_dir_config *section = ap_get_core_module_config(r->per_dir_config);

    return section->enable_sendfile == ENABLE_SENDFILE_OFF;
}

void offload_send_directly(apr_bucket *b, request_rec *r, int may_sendfile)
{
    apr_bucket_file *part = b->data;
    apr_int32_t flags = apr_file_flags_get(part->fd);
    apr_file_t *alias = NULL, *own = NULL;
    apr_os_file_t descriptor;

    if (flags & APR_FOPEN_XTHREAD) {
        /* Others move its place; APR knows how to read it all the same, through a handle of its own. */
        return;
    }
    apr_bucket_file_enable_mmap(b, 0);
    apr_bucket_file_set_buf_size(b, OFFLOAD_READ_SIZE);
    if (!may_sendfile || offload_forbids_sendfile(r) || flags & APR_FOPEN_SENDFILE_ENABLED) {
        return;
    }
    /*
     * The flag cannot be set later. A second handle has it, with a descriptor of its own: whoever made the
     * file may close his as soon as he has passed it on (mod_lua does).
     */
    if (apr_os_file_get(&descriptor, part->fd) == APR_SUCCESS
        && apr_os_file_put(&alias, &descriptor, APR_FOPEN_READ | APR_FOPEN_BINARY | APR_FOPEN_SENDFILE_ENABLED,
                           r->pool) == APR_SUCCESS
        && apr_file_dup(&own, alias, r->pool) == APR_SUCCESS) {
        part->fd = own;
    }
}

int offload_file_end(const apr_bucket *b, apr_off_t *end)
{
    apr_bucket_file *part = b->data;
    apr_os_file_t descriptor = -1;

    *end = b->start + (apr_off_t)b->length;
    return apr_os_file_get(&descriptor, part->fd) == APR_SUCCESS ? descriptor : -1;
}

apr_bucket *offload_file_part(int descriptor, apr_off_t start, apr_size_t length, request_rec *r)
{
    apr_file_t *file = NULL;
    apr_os_file_t raw = descriptor;
    apr_bucket *b;

    apr_os_file_put(&file, &raw, APR_FOPEN_READ | APR_FOPEN_BINARY | APR_FOPEN_SENDFILE_ENABLED, r->pool);
    b = apr_bucket_file_create(file, start, length, r->pool, r->connection->bucket_alloc);
    apr_bucket_file_enable_mmap(b, 0);
    apr_bucket_file_set_buf_size(b, OFFLOAD_READ_SIZE);
    return b;
}

apr_status_t offload_drain(ap_filter_t *f)
{
    return f->frec->filter_func.out_func(f, NULL);
}
