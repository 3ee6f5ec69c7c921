/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Functions that older kernels do not have. Kbuild tests which functions the
 * kernel has. No other part of the driver depends on the kernel's version.
 */
#ifndef _UMMUNOTIFY_COMPAT_H
#define _UMMUNOTIFY_COMPAT_H

#include <linux/mm.h>
#include <linux/slab.h>

/* Linux before 6.3 does not have this function. */
#ifndef UMMUNOTIFY_HAS_vm_flags_mod
static inline void vm_flags_mod(struct vm_area_struct *vma,
				unsigned long set, unsigned long clear)
{
	vma->vm_flags = (vma->vm_flags | set) & ~clear;
}
#endif

/* Most kernels before 7.0 do not have this macro. */
#ifndef UMMUNOTIFY_HAS_kzalloc_obj
#define kzalloc_obj(object, gfp)	kzalloc(sizeof(object), gfp)
#endif

#endif /* _UMMUNOTIFY_COMPAT_H */
