// Shared between the files that read manifests.
#ifndef MOB_LWS_MANIFEST_INTERNAL_H
#define MOB_LWS_MANIFEST_INTERNAL_H

#include "launcher/lws/reader.h"

// A PodTemplateSpec; NULL when `at.node` is absent.
const mob_lws_template_t *mob__lws_read_template(mob_lws_reader_t *r, mob_lws_at_t at);
void mob__lws_read_container(mob_lws_reader_t *r, mob_lws_at_t at, bool init,
                             mob_lws_container_t *c);
void mob__lws_read_volume(mob_lws_reader_t *r, mob_lws_at_t at, mob_lws_volume_t *volume);
mob_lws_pair_list_t mob__lws_read_labels(mob_lws_reader_t *r, mob_lws_at_t map, const char *key);
void mob__lws_read_service(mob_lws_reader_t *r, mob_lws_at_t root);
void mob__lws_read_config(mob_lws_reader_t *r, mob_lws_at_t root, const char *kind);
const char *mob__lws_read_name(mob_lws_reader_t *r, mob_lws_at_t root, const char **namespace_,
                               size_t max);

#endif
