// Protobuf messages out of arbitrary bytes: always well-formed, so that a fuzzer's bytes go into
// what a handler does with a message and not into the wire format.
#ifndef MOB_FUZZ_MESSAGE_MAKER_H
#define MOB_FUZZ_MESSAGE_MAKER_H

#include <protobuf-c/protobuf-c.h>

#include "tests/fuzz/source.h"

// A message of this type, to be freed with mob_pb_free(). Ids have the length that their field's
// name asks for and few values, so that messages speak of one another's nodes, jobs and actors.
void *make_message(const ProtobufCMessageDescriptor *type, source_t *in);

#endif
