// Bodies of the JSON routes: the first byte chooses the route, the rest is the body.
#include <stdint.h>
#include <stdlib.h>

#include "engine/api/request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size == 0) return 0;
  mob_api_request_t request;
  char *error = NULL;
  mob_api_kind_t kind = (mob_api_kind_t)(data[0] % 4);
  if (mob__request_parse(kind, NULL, (const char *)data + 1, size - 1, &request, &error) !=
      MOB_OK) {
    free(error);
    return 0;
  }
  if (kind == MOB_API_CHAT || kind == MOB_API_COMPLETION) {
    static const mob_api_limits_t limits = {.vocab = 1000,
                                            .max_len = 2048,
                                            .max_logprobs = 20,
                                            .temperature = NAN,
                                            .top_p = NAN,
                                            .repetition_penalty = NAN,
                                            .min_p = NAN,
                                            .top_k = MOB_UNSET,
                                            .max_new_tokens = MOB_UNSET};
    static const int32_t prompt[] = {1, 2, 3};
    mob_api_sampling_t sampling;
    if (mob__request_sampling(&request, &limits, prompt, 3, &sampling) == MOB_OK &&
        (sampling.max_tokens < 1 || sampling.max_tokens > 2045 || sampling.n < 1 ||
         sampling.best_of < sampling.n)) {
      abort();
    }
  }
  mob__request_clear(&request);
  return 0;
}
