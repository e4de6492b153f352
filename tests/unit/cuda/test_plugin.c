// What can be said about the CUDA plug-in without a GPU: its absence and the absence of a GPU are one clear line each, and a built
// plug-in finds every symbol that it expects of the executable.
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/backend.h"

static void absence_is_one_line(void **state) {
  (void)state;
  const mob_backend_t *backend = NULL;
  // Nothing lies beside the test's own executable.
  assert_int_equal(mob_backend_find("cuda", &backend), MOB_E_UNSUPPORTED);
  assert_non_null(strstr(mob_errmsg(), "libmobula_cuda.so"));
  assert_null(strchr(mob_errmsg(), '\n'));
}

static void auto_falls_back_to_cpu(void **state) {
  (void)state;
  const mob_backend_t *backend = NULL;
  assert_int_equal(mob_backend_find("auto", &backend), MOB_OK);
  assert_string_equal(backend->name, "cpu");
}

static void plugin_loads(void **state) {
  (void)state;
  const char *path = MOB_BINARY_DIR "/bin/libmobula_cuda.so";
  if (access(path, F_OK) != 0) skip(); // no CUDA toolkit here
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) fail_msg("%s", dlerror());
  const mob_backend_t *backend = dlsym(library, "mob_backend_cuda");
  assert_non_null(backend);
  assert_string_equal(backend->name, "cuda");
  if (backend->device_count() == 0) {
    assert_string_not_equal(mob_errmsg(), "");
    assert_null(strchr(mob_errmsg(), '\n'));
  }
  dlclose(library);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(absence_is_one_line),
      cmocka_unit_test(auto_falls_back_to_cpu),
      cmocka_unit_test(plugin_loads),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
