// Label selectors: conditions on a node's labels, each of the form "v", "!v", "in(a,b)" or
// "!in(a,b)".
#ifndef MOB_GCS_LABELS_H
#define MOB_GCS_LABELS_H

#include "ray/common.pb-c.h"
#include "runtime/rpc/message.h"

// Whether `value` (NULL: the node has no such label) meets the condition.
bool mob_label_matches(const char *value, const char *condition);
bool mob_labels_match(mob_pb_string_t *const *labels, size_t n, mob_pb_string_t *const *selector,
                      size_t conditions);
bool mob_labels_match_selector(mob_pb_string_t *const *labels, size_t n,
                               const Ray__Rpc__LabelSelector *selector); // NULL matches
bool mob_labels_match_expressions(
    mob_pb_string_t *const *labels, size_t n,
    const Ray__Rpc__LabelMatchExpressions *expressions); // NULL matches

#endif
