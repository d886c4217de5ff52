/* What bindgen reads: httpd's headers, and what of them exists only as macros. */
#ifndef OFFLOAD_SHIM_H
#define OFFLOAD_SHIM_H

#include <httpd.h>
#include <http_config.h>
#include <http_core.h>
#include <http_log.h>
#include <http_protocol.h>
#include <http_request.h>
#include <ap_expr.h>
#include <ap_mpm.h>
#include <mpm_common.h>
#include <util_filter.h>
#include <apr_pools.h>
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

#endif
