// Sets of resources, in Ray's fixed point: amounts are whole numbers of 1/10000.
//
// Placement groups turn resources into resources of their own: bundle i of group G that holds R
// gives its node `R_group_<i>_<G>` and `R_group_<G>` (G as hex), and 1000 of `bundle_group_<i>_<G>`
// and `bundle_group_<G>`; whoever runs in the bundle takes its resources under those names, and
// 0.001 of the latter two.
#ifndef MOB_GCS_RESOURCES_H
#define MOB_GCS_RESOURCES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/buf.h"
#include "runtime/base/vec.h"
#include "runtime/rpc/message.h"

#define MOB_RESOURCE_UNIT 10000
#define MOB_RESOURCE_MAX 1e14 // Ray's own limit

typedef struct mob_amount {
  char *name;     // owned
  int64_t amount; // in 1/10000; may be below zero while views catch up
} mob_amount_t;

// Sorted by name. All-zero is the empty set.
typedef MOB_VEC(mob_amount_t) mob_resources_t;

// Rounded to the nearest 1/10000, kept within +-MOB_RESOURCE_MAX; what is no number is 0.
int64_t mob_resource_fixed(double value);
double mob_resource_double(int64_t amount);

void mob_resources_free(mob_resources_t *set); // leaves the empty set
void mob_resources_copy(mob_resources_t *to, const mob_resources_t *from);
void mob_resources_read(mob_resources_t *to, mob_pb_double_t *const *entries,
                        size_t n); // replaces `to`
void mob_resources_write(const mob_resources_t *set, mob_pb_double_t ***entries,
                         size_t *n);                                     // replaces
int64_t mob_resources_get(const mob_resources_t *set, const char *name); // 0 when absent
void mob_resources_set(mob_resources_t *set, const char *name, int64_t amount);
void mob_resources_add(mob_resources_t *to, const mob_resources_t *from);
void mob_resources_sub(mob_resources_t *from,
                       const mob_resources_t *what); // entries stay, also at zero
bool mob_resources_cover(const mob_resources_t *have, const mob_resources_t *need);
bool mob_resources_equal(const mob_resources_t *a, const mob_resources_t *b);
// "{CPU: 1, GPU: 8}"
void mob_resources_print(const mob_resources_t *set, mob_buf_t *out);

// What a bundle adds to its node's resources once committed. `index` -1 gives the wildcard names
// only.
void mob_resources_of_bundle(mob_resources_t *out, const mob_resources_t *bundle,
                             const char *group_hex, int64_t index);
// What a task takes when it runs in bundle `index` (-1: any) of the group.
void mob_resources_in_group(mob_resources_t *out, const mob_resources_t *plain,
                            const char *group_hex, int64_t index);
bool mob_resource_is_group(const char *name); // "GPU_group_0_<hex>", "bundle_group_<hex>"

#endif
