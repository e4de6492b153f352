// Hands messages from any thread to the thread that runs a libuv loop: the only way another thread
// touches what the loop owns. Posting never blocks on the loop.
#ifndef MOB_BASE_MAILBOX_H
#define MOB_BASE_MAILBOX_H

#include <uv.h>

typedef struct mob_mailbox mob_mailbox_t;
typedef void (*mob_mailbox_fn)(void *owner, void *message);

// `fn(owner, message)` runs on the loop's thread, in the order of posting for each posting thread.
mob_mailbox_t *mob_mailbox_new(uv_loop_t *loop, mob_mailbox_fn fn, void *owner);

// From any thread. The message passes to the receiver.
void mob_mailbox_post(mob_mailbox_t *box, void *message);

// On the loop's thread, when no thread can post any more. Undelivered messages are delivered first.
// The box is freed by a later turn of the loop.
void mob_mailbox_close(mob_mailbox_t *box);

#endif
