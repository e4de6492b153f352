// The one Ray release whose wire this project speaks. proto/ray/*.proto hold its field numbers, and
// its clients refuse a head that names another release.
#ifndef MOB_RPC_RAY_VERSION_H
#define MOB_RPC_RAY_VERSION_H

#define MOB_RAY_VERSION "2.54.0"

#endif
