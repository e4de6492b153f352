// TLS over memory BIOs: the connection moves the bytes, OpenSSL never sees a socket.
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/mem.h"
#include "runtime/http/internal.h"

struct mob__tls_ctx {
  SSL_CTX *ssl;
};

struct mob__tls {
  SSL *ssl;
  BIO *in, *out; // owned by `ssl`
};

static mob_status fail_ssl(const char *what, const char *file) {
  char why[256] = "unknown error";
  unsigned long code = ERR_get_error();
  if (code) ERR_error_string_n(code, why, sizeof why);
  ERR_clear_error();
  return mob_fail(MOB_E_INVALID, "%s %s: %s", what, file, why);
}

static int choose_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_len,
                       const unsigned char *in, unsigned in_len, void *arg) {
  (void)ssl, (void)arg;
  static const unsigned char http11[] = "\x08http/1.1";
  if (SSL_select_next_proto((unsigned char **)out, out_len, http11, sizeof http11 - 1, in,
                            in_len) != OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_NOACK;
  }
  return SSL_TLSEXT_ERR_OK;
}

mob_status mob__tls_ctx_new(const mob_http_config_t *config, mob__tls_ctx_t **out) {
  *out = NULL;
  if (!config->tls_key) {
    return mob_fail(MOB_E_INVALID,
                    "TLS needs both the certificate and its key; the key file is missing");
  }
  mob_status status = MOB_OK;
  SSL_CTX *ssl = SSL_CTX_new(TLS_server_method());
  if (!ssl) return fail_ssl("TLS", "context");
  SSL_CTX_set_min_proto_version(ssl, TLS1_2_VERSION);
  SSL_CTX_set_mode(ssl, SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_options(ssl, SSL_OP_NO_RENEGOTIATION | SSL_OP_IGNORE_UNEXPECTED_EOF);
  SSL_CTX_set_alpn_select_cb(ssl, choose_alpn, NULL);
  if (SSL_CTX_use_certificate_chain_file(ssl, config->tls_cert) != 1) {
    status = fail_ssl("TLS certificate", config->tls_cert);
    goto fail;
  }
  if (SSL_CTX_use_PrivateKey_file(ssl, config->tls_key, SSL_FILETYPE_PEM) != 1 ||
      SSL_CTX_check_private_key(ssl) != 1) {
    status = fail_ssl("TLS key", config->tls_key);
    goto fail;
  }
  if (config->tls_ca && SSL_CTX_load_verify_locations(ssl, config->tls_ca, NULL) != 1) {
    status = fail_ssl("TLS CA file", config->tls_ca);
    goto fail;
  }
  if (config->tls_cert_reqs > 0) {
    SSL_CTX_set_verify(
        ssl, SSL_VERIFY_PEER | (config->tls_cert_reqs > 1 ? SSL_VERIFY_FAIL_IF_NO_PEER_CERT : 0),
        NULL);
    SSL_CTX_set_session_id_context(ssl, (const unsigned char *)"mobula", 6);
  }
  *out = MOB_NEW(mob__tls_ctx_t);
  (*out)->ssl = ssl;
  return MOB_OK;
fail:
  SSL_CTX_free(ssl);
  return status;
}

void mob__tls_ctx_free(mob__tls_ctx_t *ctx) {
  if (!ctx) return;
  SSL_CTX_free(ctx->ssl);
  free(ctx);
}

mob__tls_t *mob__tls_new(mob__tls_ctx_t *ctx) {
  mob__tls_t *tls = MOB_NEW(mob__tls_t);
  tls->ssl = SSL_new(ctx->ssl);
  tls->in = BIO_new(BIO_s_mem());
  tls->out = BIO_new(BIO_s_mem());
  MOB_ASSERT(tls->ssl && tls->in && tls->out);
  SSL_set_bio(tls->ssl, tls->in, tls->out);
  SSL_set_accept_state(tls->ssl);
  return tls;
}

void mob__tls_free(mob__tls_t *tls) {
  if (!tls) return;
  SSL_free(tls->ssl);
  free(tls);
}

static void take_wire(mob__tls_t *tls, mob_buf_t *wire) {
  char *data;
  long len = BIO_get_mem_data(tls->out, &data);
  if (len > 0) mob_buf_append(wire, data, (size_t)len);
  (void)BIO_reset(tls->out);
}

bool mob__tls_read(mob__tls_t *tls, const void *data, size_t len, mob_buf_t *plain,
                   mob_buf_t *wire) {
  ERR_clear_error();
  if (BIO_write(tls->in, data, (int)len) != (int)len) return false;
  bool alive = true;
  if (!SSL_is_init_finished(tls->ssl)) {
    int rc = SSL_do_handshake(tls->ssl);
    if (rc != 1 && SSL_get_error(tls->ssl, rc) != SSL_ERROR_WANT_READ) alive = false;
  }
  while (alive && SSL_is_init_finished(tls->ssl)) {
    mob_buf_reserve(plain, 16 * 1024);
    int n = SSL_read(tls->ssl, plain->data + plain->len, 16 * 1024);
    if (n > 0) {
      plain->len += (size_t)n;
      continue;
    }
    if (SSL_get_error(tls->ssl, n) != SSL_ERROR_WANT_READ)
      alive = false; // the peer's goodbye, or garbage
    break;
  }
  take_wire(tls, wire);
  return alive;
}

bool mob__tls_write(mob__tls_t *tls, const void *data, size_t len, mob_buf_t *wire) {
  ERR_clear_error();
  bool ok = true;
  const char *from = data;
  while (len > 0 && ok) {
    int n = SSL_write(tls->ssl, from, len > 1 << 20 ? 1 << 20 : (int)len);
    if (n <= 0) {
      ok = false;
    } else {
      from += n;
      len -= (size_t)n;
    }
  }
  take_wire(tls, wire);
  return ok;
}

void mob__tls_bye(mob__tls_t *tls, mob_buf_t *wire) {
  ERR_clear_error();
  if (SSL_is_init_finished(tls->ssl)) SSL_shutdown(tls->ssl);
  ERR_clear_error();
  take_wire(tls, wire);
}
