/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Functions that older kernels do not have. Kbuild finds out which these are, and nothing
 * else in the driver depends on the kernel that it is built for.
 */
#ifndef _UMMUNOTIFY_COMPAT_H
#define _UMMUNOTIFY_COMPAT_H

#include <linux/mm.h>
#include <linux/slab.h>

/* Before 6.3 */
#ifndef UMMUNOTIFY_HAS_vm_flags_mod
static inline void vm_flags_mod(struct vm_area_struct *vma,
				unsigned long set, unsigned long clear)
{
	vma->vm_flags = (vma->vm_flags | set) & ~clear;
}
#endif

/* Before 7.0 */
#ifndef UMMUNOTIFY_HAS_kzalloc_obj
#define kzalloc_obj(object, gfp)	kzalloc(sizeof(object), gfp)
#endif

#endif /* _UMMUNOTIFY_COMPAT_H */
