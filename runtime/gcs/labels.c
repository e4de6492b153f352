#include "runtime/gcs/labels.h"

#include <string.h>

static bool in_list(const char *value, const char *list, size_t len) {
  size_t want = strlen(value);
  for (size_t at = 0; at <= len;) {
    size_t end = at;
    while (end < len && list[end] != ',') end++;
    size_t from = at, to = end;
    while (from < to && list[from] == ' ') from++;
    while (to > from && list[to - 1] == ' ') to--;
    if (to - from == want && memcmp(list + from, value, want) == 0) return true;
    at = end + 1;
  }
  return false;
}

bool mob_label_matches(const char *value, const char *condition) {
  bool wanted = condition[0] != '!';
  if (!wanted) condition++;
  size_t len = strlen(condition);
  bool equal;
  if (len >= 4 && strncmp(condition, "in(", 3) == 0 && condition[len - 1] == ')') {
    equal = value && in_list(value, condition + 3, len - 4);
  } else {
    equal = value && strcmp(value, condition) == 0;
  }
  return equal == wanted;
}

bool mob_labels_match(mob_pb_string_t *const *labels, size_t n, mob_pb_string_t *const *selector,
                      size_t conditions) {
  for (size_t i = 0; i < conditions; i++) {
    if (!mob_label_matches(mob_pb_string_get(labels, n, selector[i]->key), selector[i]->value))
      return false;
  }
  return true;
}

bool mob_labels_match_selector(mob_pb_string_t *const *labels, size_t n,
                               const Ray__Rpc__LabelSelector *selector) {
  for (size_t i = 0; selector && i < selector->n_label_constraints; i++) {
    const Ray__Rpc__LabelSelectorConstraint *c = selector->label_constraints[i];
    const char *value = mob_pb_string_get(labels, n, c->label_key);
    bool found = false;
    for (size_t k = 0; value && k < c->n_label_values; k++)
      found |= strcmp(value, c->label_values[k]) == 0;
    if (found == (c->operator_ == RAY__RPC__LABEL_SELECTOR_OPERATOR__LABEL_OPERATOR_NOT_IN))
      return false;
  }
  return true;
}

bool mob_labels_match_expressions(mob_pb_string_t *const *labels, size_t n,
                                  const Ray__Rpc__LabelMatchExpressions *expressions) {
  for (size_t i = 0; expressions && i < expressions->n_expressions; i++) {
    const Ray__Rpc__LabelMatchExpression *e = expressions->expressions[i];
    const char *value = mob_pb_string_get(labels, n, e->key);
    const Ray__Rpc__LabelOperator *op = e->operator_;
    bool found = false;
    switch (op ? op->label_operator_case : RAY__RPC__LABEL_OPERATOR__LABEL_OPERATOR__NOT_SET) {
    case RAY__RPC__LABEL_OPERATOR__LABEL_OPERATOR_LABEL_IN:
      for (size_t k = 0; value && k < op->label_in->n_values; k++) {
        found |= strcmp(value, op->label_in->values[k]) == 0;
      }
      if (!found) return false;
      break;
    case RAY__RPC__LABEL_OPERATOR__LABEL_OPERATOR_LABEL_NOT_IN:
      for (size_t k = 0; value && k < op->label_not_in->n_values; k++) {
        found |= strcmp(value, op->label_not_in->values[k]) == 0;
      }
      if (found) return false;
      break;
    case RAY__RPC__LABEL_OPERATOR__LABEL_OPERATOR_LABEL_EXISTS:
      if (!value) return false;
      break;
    case RAY__RPC__LABEL_OPERATOR__LABEL_OPERATOR_LABEL_DOES_NOT_EXIST:
      if (value) return false;
      break;
    default:
      break;
    }
  }
  return true;
}
