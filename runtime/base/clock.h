// Time. Durations and deadlines use the monotonic clock, what people read uses the wall clock.
#ifndef MOB_BASE_CLOCK_H
#define MOB_BASE_CLOCK_H

#include <stdint.h>

uint64_t mob_now_ns(void);  // monotonic
uint64_t mob_now_ms(void);  // monotonic
int64_t mob_wall_ms(void);  // since 1970
double mob_wall_seconds(void);

#endif
