// The manifest reader on arbitrary bytes: it may refuse, it may not crash, hang or leak.
#include <stddef.h>
#include <stdint.h>

#include "launcher/lws/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  mob_lws_manifest_t manifest = {0};
  mob__lws_manifest_add(&manifest, "fuzz.yaml", data, size);
  mob__lws_manifest_finish(&manifest);
  mob__lws_manifest_free(&manifest);
  return 0;
}
