// Protobuf messages out of arbitrary bytes: always well-formed, so that a fuzzer's bytes go into
// what a handler does with a message and not into the wire format.
#ifndef MOB_FUZZ_MESSAGE_MAKER_H
#define MOB_FUZZ_MESSAGE_MAKER_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>
#include <stdint.h>

typedef struct source { // what is left of a fuzzer's input; behind its end come zeros
  const uint8_t *at, *end;
} source_t;

uint8_t take_byte(source_t *in);

// A message of this type, to be freed with mob_pb_free(). Ids have the length that their field's
// name asks for and few values, so that messages speak of one another's nodes, jobs and actors.
void *make_message(const ProtobufCMessageDescriptor *type, source_t *in);

#endif
