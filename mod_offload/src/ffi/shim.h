/* What bindgen reads: httpd's headers, and what of them exists only as macros. */
#ifndef OFFLOAD_SHIM_H
#define OFFLOAD_SHIM_H

#include <httpd.h>
#include <http_config.h>
#include <http_core.h>
#include <http_log.h>
#include <http_protocol.h>
#include <http_request.h>
#include <http_ssl.h>
#include <ap_expr.h>
#include <ap_mpm.h>
#include <ap_listen.h>
#include <http_connection.h>
#include <mpm_common.h>
#include <util_filter.h>
#include <apr_buckets.h>
#include <apr_pools.h>
#include <apr_portable.h>
#include <apr_strings.h>
#include <apr_tables.h>

/*
 * Sends a whole body through the filters that httpd's own error pages go through. The text must live as
 * long as the request's pool.
 */
apr_status_t offload_send_body(request_rec *r, const char *text, apr_size_t length);

/* What ErrorDocument says for a status here; NULL if nothing. */
const char *offload_error_document(request_rec *r, int status);

/* One line in the request's error log. The text is never a format. */
void offload_log_request(const request_rec *r, int level, const char *text);

/* One line in the server's error log, or before it is open on stderr; s may be NULL. */
void offload_log_server(const server_rec *s, int level, const char *text);

/* What a bucket is. */
enum offload_kind {
    OFFLOAD_MEMORY,     /* bytes, or what makes them when it is read */
    OFFLOAD_FILE,       /* a part of a file */
    OFFLOAD_EOS,        /* the end of the response */
    OFFLOAD_EOR,        /* when this is destroyed, so is the request */
    OFFLOAD_EOC,        /* the end of the connection */
    OFFLOAD_FLUSH,      /* what lies before it is to be written before anything else is done */
    OFFLOAD_OTHER       /* what has no bytes */
};
int offload_bucket_kind(const apr_bucket *b);

/* The first one, the one behind another; NULL if there is none. */
apr_bucket *offload_bucket_first(const apr_bucket_brigade *bb);
apr_bucket *offload_bucket_next(const apr_bucket_brigade *bb, const apr_bucket *b);

void offload_bucket_delete(apr_bucket *b);
void offload_insert_head(apr_bucket_brigade *bb, apr_bucket *b);
void offload_insert_tail(apr_bucket_brigade *bb, apr_bucket *b);

/* Moves all buckets of `from` behind those of `to`, or before them. */
void offload_append(apr_bucket_brigade *to, apr_bucket_brigade *from);

/* A bucket of our own kind. */
apr_bucket *offload_bucket_make(const apr_bucket_type_t *type, void *data, apr_bucket_alloc_t *alloc);

/* Whether the brigade has a bucket of a length that is not known. */
int offload_has_unknown_length(const apr_bucket_brigade *bb);

/*
 * Has a file's bytes sent in a way that holds no worker: not through a mapping, which httpd takes for
 * memory, and with sendfile if `may_sendfile` and the section does not forbid it.
 */
void offload_send_directly(apr_bucket *b, request_rec *r, int may_sendfile);

/* Whether the section of the request's file says `EnableSendfile Off`; without a word it does not. */
int offload_forbids_sendfile(const request_rec *r);

/* The file of a bucket that is a part of one, and where the part ends. */
int offload_file_end(const apr_bucket *b, apr_off_t *end);

/* A part of a file that stays open as long as the request. */
apr_bucket *offload_file_part(int descriptor, apr_off_t start, apr_size_t length, request_rec *r);

/* Writes what the filter has, without waiting; c->data_in_output_filters says whether something is left. */
apr_status_t offload_drain(ap_filter_t *f);

#endif
