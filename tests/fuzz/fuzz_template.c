// A chat template, rendered with a small conversation.
#include <stddef.h>
#include <stdint.h>

#include "engine/text/template.h"

static const char vars_json[] =
    "{\"messages\":[{\"role\":\"system\",\"content\":\" s "
    "\"},{\"role\":\"user\",\"content\":\"h\\u00e9 \\u4f60\"},"
    "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"type\":\"function\",\"function\":{"
    "\"name\":\"f\","
    "\"arguments\":{\"a\":1,\"b\":[1.5,null,true]}}}]},{\"role\":\"tool\",\"content\":\"x</"
    "think>y\"}],"
    "\"tools\":[{\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":{}}}}],\"add_"
    "generation_prompt\":true,"
    "\"bos_token\":\"<s>\",\"n\":3,\"e\":\"\",\"l\":[3,1,2],\"d\":{\"k\":\"v\",\"z\":0}}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static json_t *vars;
  if (!vars) vars = json_loads(vars_json, 0, NULL);
  mob_template_t *tpl;
  if (mob_template_parse((const char *)data, size, &tpl) != MOB_OK) return 0;
  mob_buf_t out = {0};
  (void)mob_template_render(tpl, vars, &out);
  mob_buf_free(&out);
  mob_template_free(tpl);
  return 0;
}
