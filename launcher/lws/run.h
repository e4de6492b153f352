// Runs a runner whose parts are configured and whose process has entered its network.
#ifndef MOB_LWS_RUN_H
#define MOB_LWS_RUN_H

#include "launcher/lws/runner.h"

// Until every pod is gone after a signal, `down` or a failure. `replicas` overrides the manifests'
// when not negative. `started` runs once the first pods were made. Returns the exit status.
int mob__runner_run(mob_lws_runner_t *runner, int64_t replicas, void (*started)(void *arg),
                    void *arg);

#endif
