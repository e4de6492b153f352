// How a container's start is marked in its pod's log; the reader of `lws logs` looks for it.
#ifndef MOB_LWS_LOG_MARKER_H
#define MOB_LWS_LOG_MARKER_H

#define MOB_LWS_LOG_MARKER "--- mobula lws: "

#endif
