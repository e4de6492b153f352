// Error handling: a status code, plus the message of this thread's last failure.
//
// A fallible function returns mob_status and puts its results in out-parameters, last. A failing
// function calls mob_fail() once, where it knows the cause; callers pass the code on with MOB_TRY and
// may put context in front with mob_wrap(). The message lives until the next mob_fail() or
// mob_wrap() of the same thread; whoever hands a failure to another thread copies it.
#ifndef MOB_BASE_STATUS_H
#define MOB_BASE_STATUS_H

typedef enum mob_status {
  MOB_OK = 0,
  MOB_E_INVALID,      // the caller's or the user's input is wrong
  MOB_E_NOT_FOUND,    // the named thing does not exist
  MOB_E_EXISTS,       // the named thing exists already
  MOB_E_UNSUPPORTED,  // valid, but this build or this machine cannot do it
  MOB_E_NO_RESOURCES, // memory, GPUs, ports, slots
  MOB_E_IO,           // the operating system said no; the message holds strerror
  MOB_E_FORMAT,       // a file or message does not follow its format
  MOB_E_TIMEOUT,      // a deadline passed
  MOB_E_UNAVAILABLE,  // the peer is not there or not there any more
  MOB_E_ABORTED,      // given up because somebody asked for it
  MOB_E_INTERNAL,     // a bug
} mob_status;

// Sets the thread's message and returns `code`, so that `return mob_fail(...)` reads as one step.
mob_status mob_fail(mob_status code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// Puts "CONTEXT: " in front of the thread's message and returns `code`.
mob_status mob_wrap(mob_status code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// The thread's last message, "" if there was none. Valid until the next mob_fail()/mob_wrap().
const char *mob_errmsg(void);

// "INVALID", "NOT_FOUND", ... for logs.
const char *mob_status_name(mob_status code);

#define MOB_TRY(expr)                                                                              \
  do {                                                                                             \
    mob_status mob_try_status_ = (expr);                                                           \
    if (mob_try_status_ != MOB_OK) return mob_try_status_;                                         \
  } while (0)

// For functions with a cleanup label: `status` is the function's mob_status variable.
#define MOB_TRY_GOTO(expr, status, label)                                                          \
  do {                                                                                             \
    (status) = (expr);                                                                             \
    if ((status) != MOB_OK) goto label;                                                            \
  } while (0)

_Noreturn void mob_assert_failed(const char *expr, const char *file, int line);

// For invariants, never for input: a broken one ends the process with file and line.
#define MOB_ASSERT(expr) ((expr) ? (void)0 : mob_assert_failed(#expr, __FILE__, __LINE__))

#endif
