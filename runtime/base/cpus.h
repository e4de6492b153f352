// How many CPUs this process may use.
#ifndef MOB_BASE_CPUS_H
#define MOB_BASE_CPUS_H

// Its affinity mask, and no more than the quota of its control group (rounded up). At least 1.
int mob_cpu_count(void);

#endif
