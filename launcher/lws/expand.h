// $(VAR) as the kubelet expands it in command, args and env values, before any shell sees the text:
// $(NAME) becomes the variable's value, $$ a single $ (so $$(NAME) stays literally $(NAME)), and an
// unknown $(NAME) stays as it is. (Source: k8s.io/kubernetes third_party/forked/golang/expansion.)
#ifndef MOB_LWS_EXPAND_H
#define MOB_LWS_EXPAND_H

// `lookup` returns NULL for an unknown name. The caller frees the result.
char *mob__lws_expand(const char *text, const char *(*lookup)(void *arg, const char *name),
                      void *arg);

#endif
