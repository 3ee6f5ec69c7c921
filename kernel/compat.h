/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What older kernels do not have. Kbuild finds out what that is, and nothing
 * else in the driver depends on the kernel that it is built for.
 */
#ifndef _UMMUNOTIFY_COMPAT_H
#define _UMMUNOTIFY_COMPAT_H

#include <linux/mm.h>
#include <linux/rbtree.h>

/* Before 5.12 */
#ifndef UMMUNOTIFY_HAS_rb_find_add
static inline struct rb_node *rb_find_add(struct rb_node *node, struct rb_root *tree,
					  int (*cmp)(struct rb_node *, const struct rb_node *))
{
	struct rb_node **link = &tree->rb_node, *parent = NULL;

	while (*link) {
		int order = cmp(node, *link);

		if (!order)
			return *link;
		parent = *link;
		link = order < 0 ? &parent->rb_left : &parent->rb_right;
	}
	rb_link_node(node, parent, link);
	rb_insert_color(node, tree);
	return NULL;
}

static inline struct rb_node *rb_find(const void *key, const struct rb_root *tree,
				      int (*cmp)(const void *key, const struct rb_node *))
{
	struct rb_node *node = tree->rb_node;

	while (node) {
		int order = cmp(key, node);

		if (!order)
			return node;
		node = order < 0 ? node->rb_left : node->rb_right;
	}
	return NULL;
}
#endif

/* Before 6.3 */
#ifndef UMMUNOTIFY_HAS_vm_flags_mod
static inline void vm_flags_mod(struct vm_area_struct *vma,
				unsigned long set, unsigned long clear)
{
	vma->vm_flags = (vma->vm_flags | set) & ~clear;
}
#endif

#endif /* _UMMUNOTIFY_COMPAT_H */
