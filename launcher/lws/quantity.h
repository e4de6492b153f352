// Kubernetes resource quantities: "512G", "32Gi", "500m", "1.5", "1e3".
#ifndef MOB_LWS_QUANTITY_H
#define MOB_LWS_QUANTITY_H

#include <stdbool.h>
#include <stdint.h>

// Thousandths of the unit, rounded up; false when the text is no quantity or does not fit.
bool mob__lws_quantity_millis(const char *text, int64_t *out);
// Whole units, rounded up.
bool mob__lws_quantity(const char *text, int64_t *out);

#endif
