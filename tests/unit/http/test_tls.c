// TLS with a certificate made here, OpenSSL's own client on the other side.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"

static char dir[] = "/tmp/mobula-tls-XXXXXX";
static char cert_path[64], key_path[64];

static int make_files(void **state) {
  (void)state;
  assert_non_null(mkdtemp(dir));
  snprintf(cert_path, sizeof cert_path, "%s/cert.pem", dir);
  snprintf(key_path, sizeof key_path, "%s/key.pem", dir);
  EVP_PKEY *key = EVP_EC_gen("P-256");
  X509 *cert = X509_new();
  X509_set_version(cert, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
  X509_gmtime_adj(X509_getm_notBefore(cert), -60);
  X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
  X509_set_pubkey(cert, key);
  X509_NAME *name = X509_get_subject_name(cert);
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"localhost", -1, -1,
                             0);
  X509_set_issuer_name(cert, name);
  assert_true(X509_sign(cert, key, EVP_sha256()) > 0);
  FILE *f = fopen(cert_path, "w");
  PEM_write_X509(f, cert);
  fclose(f);
  f = fopen(key_path, "w");
  PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL);
  fclose(f);
  X509_free(cert);
  EVP_PKEY_free(key);
  return 0;
}

static int remove_files(void **state) {
  (void)state;
  unlink(cert_path);
  unlink(key_path);
  rmdir(dir);
  return 0;
}

static SSL *connect_tls(SSL_CTX *ctx, int port, int *fd) {
  *fd = client_connect(port);
  SSL *ssl = SSL_new(ctx);
  SSL_set_fd(ssl, *fd);
  return ssl;
}

static void read_until(SSL *ssl, mob_buf_t *in, const char *text) {
  while (!in->len || !memmem(in->data, in->len, text, strlen(text))) {
    char block[4096];
    int n = SSL_read(ssl, block, sizeof block);
    if (n <= 0) fail_msg("the session ended early: %.*s", (int)in->len, (char *)in->data);
    mob_buf_append(in, block, (size_t)n);
  }
}

static void test_requests_over_tls(void **state) {
  (void)state;
  harness_t h;
  mob_http_config_t config = harness_config();
  config.tls_cert = cert_path;
  config.tls_key = key_path;
  harness_start(&h, &config);
  SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
  SSL_CTX_load_verify_locations(ctx, cert_path, NULL);
  SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
  int fd;
  SSL *ssl = connect_tls(ctx, h.port, &fd);
  assert_int_equal(SSL_connect(ssl), 1);
  mob_buf_t in = {0};
  static const char head[] = "POST /x HTTP/1.1\r\nHost: y\r\nContent-Length: 500000\r\n\r\n";
  char *body = calloc(1, 500000);
  SSL_write(ssl, head, sizeof head - 1);
  SSL_write(ssl, body, 500000); // many records
  read_until(ssl, &in, "POST /x ? 500000 ");
  in.len = 0;
  SSL_write(ssl, "GET /stream HTTP/1.1\r\nHost: y\r\nConnection: close\r\n\r\n", 52);
  read_until(ssl, &in, "0\r\n\r\n");
  char c;
  assert_int_equal(SSL_read(ssl, &c, 1), 0);
  assert_int_equal(SSL_get_error(ssl, 0), SSL_ERROR_ZERO_RETURN); // an orderly goodbye
  free(body);
  mob_buf_free(&in);
  SSL_free(ssl);
  close(fd);

  ssl = connect_tls(ctx, h.port, &fd); // a client that leaves is noticed here too
  assert_int_equal(SSL_connect(ssl), 1);
  SSL_write(ssl, "GET /hold HTTP/1.1\r\nHost: y\r\n\r\n", 31);
  wait_for(&h.waiting, 1);
  SSL_free(ssl);
  close(fd);
  wait_for(&h.gone, 1);

  fd = client_connect(h.port); // plain HTTP on a TLS port
  client_sends(fd, "GET / HTTP/1.1\r\nHost: y\r\n\r\n");
  char alert[64];
  while (read(fd, alert, sizeof alert) > 0) {
  }
  close(fd);
  SSL_CTX_free(ctx);
  harness_stop(&h);
}

static void test_client_certificate(void **state) {
  (void)state;
  harness_t h;
  mob_http_config_t config = harness_config();
  config.tls_cert = config.tls_ca = cert_path;
  config.tls_key = key_path;
  config.tls_cert_reqs = 2;
  harness_start(&h, &config);
  for (int with = 0; with <= 1; with++) {
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_max_proto_version(ctx, TLS1_2_VERSION); // the refusal shows in the handshake
    if (with) {
      SSL_CTX_use_certificate_file(ctx, cert_path, SSL_FILETYPE_PEM);
      SSL_CTX_use_PrivateKey_file(ctx, key_path, SSL_FILETYPE_PEM);
    }
    int fd;
    SSL *ssl = connect_tls(ctx, h.port, &fd);
    assert_int_equal(SSL_connect(ssl) == 1, with);
    SSL_free(ssl);
    close(fd);
    SSL_CTX_free(ctx);
  }
  harness_stop(&h);
}

static void test_bad_files(void **state) {
  (void)state;
  uv_loop_t loop;
  uv_loop_init(&loop);
  mob_http_config_t config = harness_config();
  mob_http_handler_t handler = {0};
  mob_http_server_t *server;
  config.tls_cert = cert_path;
  assert_int_equal(mob_http_bind(&loop, &config, &handler, NULL, &server), MOB_E_INVALID);
  config.tls_key = "/nonexistent/key.pem";
  assert_int_equal(mob_http_bind(&loop, &config, &handler, NULL, &server), MOB_E_INVALID);
  assert_non_null(strstr(mob_errmsg(), "/nonexistent/key.pem"));
  config.tls_cert = config.tls_key = key_path;
  assert_int_equal(mob_http_bind(&loop, &config, &handler, NULL, &server), MOB_E_INVALID);
  assert_int_equal(uv_loop_close(&loop), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_requests_over_tls),
      cmocka_unit_test(test_client_certificate),
      cmocka_unit_test(test_bad_files),
  };
  return cmocka_run_group_tests_name("tls", tests, make_files, remove_files);
}
