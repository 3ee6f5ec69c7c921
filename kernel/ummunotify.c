// SPDX-License-Identifier: GPL-2.0-only
/*
 * ummunotify - tell user space when the mapping of its memory changes
 *
 * A library that registers memory with an RDMA adapter, and keeps the
 * registration for the next transfer, must know when the pages at those
 * addresses are no longer the ones that the adapter has pinned. This driver
 * tells it: a process opens /dev/ummunotify, names ranges of its own address
 * space to watch, and finds out that one of them was invalidated by comparing
 * a 64-bit generation counter in a page that it has mapped, and which one by
 * read().
 *
 * There is no queue. Per range there is one bit of state, "invalid", and a
 * hint where; whatever happens between two reads, memory stays what it was.
 *
 * Order
 * -----
 * An invalidation is recorded, and the counter raised, in the MMU notifier's
 * invalidate_range_start(), that is before the first page table entry goes.
 * The task that changes the mapping does this itself, so that the counter has
 * moved before its system call returns, and before it lets go of the locks
 * that keep anybody else from mapping something new at the address.
 *
 * Two cases remain, both of a caller that comes between start and end of an
 * invalidation, when its page table entries may not be gone yet, and goes on to
 * pin pages that are about to be unmapped:
 *
 * - It registers a range. The start did not find that range, so
 *   UMMUNOTIFY_REGISTER_REGION waits for the end; ummunotify_wait_for_older().
 * - It reads that the range was hit, and pins anew under the same watch. The
 *   invalidation that was reported too early is reported once more when it ends;
 *   ummunotify_running.reported. Reading does not wait instead, because unmapping
 *   many gigabytes takes seconds.
 *
 * Locks
 * -----
 * ummunotify_file.lock is a spinlock, taken by the notifier callbacks. Nothing
 * under it sleeps, allocates or touches user memory.
 *
 * ummunotify_file.deliver is a mutex around the time in which events are off
 * the list and on their way to a user buffer. It makes UNREGISTER_REGION wait
 * for a read() that has already picked up the event, and lets a read() whose
 * buffer faults put its events back. The callbacks never take it.
 *
 * deliver nests outside lock.
 *
 * Memory
 * ------
 * What a process makes the driver allocate is charged to its memory cgroup. A
 * process at the limit of its own is told ENOMEM, and nobody is killed for it:
 * UMMUNOTIFY_GFP.
 */

#include <linux/compat.h>
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/hash.h>
#include <linux/interval_tree.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/poll.h>
#include <linux/rbtree.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/wait.h>
#include <linux/ummunotify.h>

#include "compat.h"

/* An invalidation visits all ranges that it hits, under a spinlock. */
static unsigned int max_regions = 1U << 16;
module_param(max_regions, uint, 0644);
MODULE_PARM_DESC(max_regions, "Most ranges that one open file may watch (default 65536)");

#define UMMUNOTIFY_GFP	(GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL)

static struct kmem_cache *ummunotify_region_cache;

/* All open files, for debugfs. */
static LIST_HEAD(ummunotify_files);
static DEFINE_MUTEX(ummunotify_files_lock);
static struct dentry *ummunotify_debugfs;

/* How many times a range was hit since it was last reported. */
enum ummunotify_hits {
	UMMUNOTIFY_NOT_HIT,
	UMMUNOTIFY_HIT_ONCE,	/* hint_start and hint_end say where */
	UMMUNOTIFY_HIT_OFTEN,
};

/**
 * struct ummunotify_region - a watched range
 * @itree: node of ummunotify_file.regions; its bounds are inclusive
 * @by_cookie: node of its tree in ummunotify_file.cookies
 * @invalid: on ummunotify_file.invalid unless @hits is UMMUNOTIFY_NOT_HIT
 * @cookie: the caller's name for the range
 * @hits: what read() has to report
 * @early: reported while an invalidation that hit it was under way
 * @protection: changes of protection hit it as well
 * @hint_start: first byte hit, if hit once
 * @hint_last: last byte hit, if hit once
 *
 * Belongs to one file. All but the constant bounds, cookie and protection is
 * guarded by ummunotify_file.lock; freed under ummunotify_file.deliver as well, so that a
 * reader may hold on to it between picking it up and delivering it.
 */
struct ummunotify_region {
	struct interval_tree_node itree;
	struct rb_node by_cookie;
	struct list_head invalid;
	u64 cookie;
	enum ummunotify_hits hits;
	bool early;
	bool protection;
	unsigned long hint_start;
	unsigned long hint_last;
};

/**
 * struct ummunotify_running - an invalidation between its start and its end
 * @task: who makes it; start and end are called by the same task
 * @start: first byte
 * @last: last byte
 * @serial: its place in the order of starts
 * @protection: it changes what may be done with the pages, not which they are
 * @reported: a region that it hit was read since
 */
struct ummunotify_running {
	struct task_struct *task;
	unsigned long start;
	unsigned long last;
	u64 serial;
	bool protection;
	bool reported;
};

#define UMMUNOTIFY_RUNNING_MAX	BITS_PER_LONG

/* Cookies are spread over so many trees, each the less high for it. */
#define UMMUNOTIFY_COOKIE_BITS	7

/**
 * struct ummunotify_file - one open file, watching the mm that opened it
 * @mn: registered with @mm from open to release
 * @mm: held by mm_count (@mn does that), so that neither can a descriptor
 *	keep dead memory, nor its address come to mean another mm
 * @used: EXCHANGE_FEATURES is no longer possible; needs no lock
 * @lock: guards everything from here to @running
 * @regions: all regions by address
 * @cookies: all regions by cookie, see ummunotify_cookies()
 * @nr_regions: how many
 * @nr_protection: how many of them changes of protection hit
 * @quiet_start: no region meets the bytes from here to @quiet_last, where the
 *	last invalidations were that hit nothing
 * @quiet_last: less than @quiet_start if none is known
 * @invalid: regions to report, oldest hit first
 * @last_owed: an INVAL was delivered and no LAST since
 * @counter: the generation
 * @untracked: invalidations under way for which @running had no room
 * @untracked_reported: a region was read since the first of them started
 * @serial: of the next invalidation to start
 * @running_slots: which elements of @running are in use
 * @running: the invalidations under way
 * @counter_page: @counter as user space sees it; never read by the kernel
 * @deliver: see above
 * @readable: those waiting for something to read
 * @ended: those waiting for an invalidation to end
 * @async: those who want SIGIO
 * @all: on ummunotify_files
 * @pid: the process that opened it, as debugfs says it
 * @comm: its name then
 */
struct ummunotify_file {
	struct mmu_notifier mn;
	struct mm_struct *mm;
	bool used;

	spinlock_t lock;
	struct rb_root_cached regions;
	struct rb_root cookies[BIT(UMMUNOTIFY_COOKIE_BITS)];
	unsigned int nr_regions;
	unsigned int nr_protection;
	unsigned long quiet_start;
	unsigned long quiet_last;
	struct list_head invalid;
	bool last_owed;
	u64 counter;
	unsigned int untracked;
	bool untracked_reported;
	u64 serial;
	unsigned long running_slots;
	struct ummunotify_running running[UMMUNOTIFY_RUNNING_MAX];

	struct page *counter_page;
	struct mutex deliver;
	wait_queue_head_t readable;
	wait_queue_head_t ended;
	struct fasync_struct *async;

	struct list_head all;
	pid_t pid;
	char comm[TASK_COMM_LEN];
};

static void ummunotify_mark_used(struct ummunotify_file *file)
{
	WRITE_ONCE(file->used, true);
}

/*
 * What belongs to the mm that opened the file is not for others, wherever the
 * descriptor may have gone. Threads and CLONE_VM children share the mm.
 */
static bool ummunotify_is_owner(const struct ummunotify_file *file)
{
	return current->mm == file->mm;
}

/* Invalidations under way */

static void ummunotify_running_add(struct ummunotify_file *file, unsigned long start,
				   unsigned long last, bool protection)
{
	unsigned long slot;

	lockdep_assert_held(&file->lock);

	if (unlikely(file->running_slots == ~0UL)) {
		file->untracked++;
		return;
	}
	slot = ffz(file->running_slots);
	file->running_slots |= BIT(slot);
	file->running[slot] = (struct ummunotify_running) {
		.task = current,
		.start = start,
		.last = last,
		.serial = file->serial++,
		.protection = protection,
	};
}

/* Returns true if the invalidation was reported before its end. */
static bool ummunotify_running_del(struct ummunotify_file *file,
				   unsigned long start, unsigned long last)
{
	const struct ummunotify_running *mine = NULL;
	unsigned long slot;

	lockdep_assert_held(&file->lock);

	/*
	 * A task may be in several invalidations at once, even with the same
	 * bounds (munmap() of a hugetlb mapping). They are nested, so that the
	 * youngest ends first.
	 */
	for_each_set_bit(slot, &file->running_slots, UMMUNOTIFY_RUNNING_MAX) {
		const struct ummunotify_running *r = &file->running[slot];

		if (r->task == current && r->start == start && r->last == last &&
		    (!mine || r->serial > mine->serial))
			mine = r;
	}
	if (mine) {
		file->running_slots &= ~BIT(mine - file->running);
		return mine->reported;
	}
	if (WARN_ON_ONCE(!file->untracked))
		return false;
	/* Which of them was reported is not known. */
	if (!--file->untracked && file->untracked_reported) {
		file->untracked_reported = false;
		return true;
	}
	return file->untracked_reported;
}

/* Does an invalidation, of protection alone or not, count for the region where they meet? */
static bool ummunotify_counts(const struct ummunotify_region *region, bool protection)
{
	return !protection || region->protection;
}

/* A region is being reported: so are the invalidations under way that hit it. */
static void ummunotify_running_report(struct ummunotify_file *file,
				      struct ummunotify_region *region)
{
	unsigned long slot;

	lockdep_assert_held(&file->lock);

	for_each_set_bit(slot, &file->running_slots, UMMUNOTIFY_RUNNING_MAX) {
		struct ummunotify_running *r = &file->running[slot];

		if (r->start <= region->itree.last && region->itree.start <= r->last &&
		    ummunotify_counts(region, r->protection)) {
			region->early = true;
			r->reported = true;
		}
	}
	if (file->untracked) {
		region->early = true;
		file->untracked_reported = true;
	}
}

/**
 * struct ummunotify_newcomer - what of a region its registering has to know
 * @start: first byte
 * @last: last byte
 * @protection: changes of protection hit it as well
 * @serial: of the first invalidation that was sure to find it
 *
 * The region itself may be gone: somebody unregisters it.
 */
struct ummunotify_newcomer {
	unsigned long start;
	unsigned long last;
	bool protection;
	u64 serial;
};

/* Is an invalidation under way that would have hit the newcomer, but was there first? */
static bool ummunotify_older_running(struct ummunotify_file *file,
				     const struct ummunotify_newcomer *new)
{
	unsigned long slot;
	bool found;

	spin_lock(&file->lock);
	/* Of those without a slot neither age nor bounds are known. */
	found = file->untracked;
	for_each_set_bit(slot, &file->running_slots, UMMUNOTIFY_RUNNING_MAX) {
		const struct ummunotify_running *r = &file->running[slot];

		found |= r->serial < new->serial &&
			 r->start <= new->last && new->start <= r->last &&
			 (new->protection || !r->protection);
	}
	spin_unlock(&file->lock);
	return found;
}

/*
 * Wait for the invalidations that had started before a range became visible to
 * them. Later ones are not waited for, so that a process that unmaps all the
 * time cannot keep a range from being registered, unless it does so in more
 * than UMMUNOTIFY_RUNNING_MAX threads at once. The caller holds no lock that an
 * invalidation could want.
 */
static int ummunotify_wait_for_older(struct ummunotify_file *file,
				     const struct ummunotify_newcomer *new)
{
	return wait_event_killable(file->ended, !ummunotify_older_running(file, new));
}

/* The MMU notifier */

enum ummunotify_kind {
	UMMUNOTIFY_NOTHING,	/* does not count */
	UMMUNOTIFY_PROTECTION,	/* changes what may be done with the pages */
	UMMUNOTIFY_MAPPING,	/* puts other pages behind the addresses */
};

/*
 * mprotect(), NUMA balancing, fork() in the parent and write-protection for
 * dirty tracking keep the pages. Kinds not known here count as changes of the
 * mapping: too many reports cost time, one too few costs data.
 */
static enum ummunotify_kind ummunotify_kind(enum mmu_notifier_event event)
{
	switch (event) {
	case MMU_NOTIFY_SOFT_DIRTY:
		return UMMUNOTIFY_NOTHING;
	case MMU_NOTIFY_PROTECTION_VMA:
	case MMU_NOTIFY_PROTECTION_PAGE:
		return UMMUNOTIFY_PROTECTION;
	default:
		return UMMUNOTIFY_MAPPING;
	}
}

/*
 * mprotect() and NUMA balancing do not announce the end of what started at
 * address 0: a start of 0 is their mark for nothing having been announced yet
 * (change_pmd_range(), later change_pud_range()).
 */
static bool ummunotify_has_end(const struct mmu_notifier_range *range)
{
	return range->start || range->event != MMU_NOTIFY_PROTECTION_VMA;
}

/* Returns true if the region was not already waiting to be reported. */
static bool ummunotify_hit(struct ummunotify_file *file,
			   struct ummunotify_region *region,
			   unsigned long start, unsigned long last)
{
	lockdep_assert_held(&file->lock);

	if (region->hits != UMMUNOTIFY_NOT_HIT) {
		region->hits = UMMUNOTIFY_HIT_OFTEN;
		return false;
	}
	region->hits = UMMUNOTIFY_HIT_ONCE;
	region->hint_start = max(start, region->itree.start);
	region->hint_last = min(last, region->itree.last);
	list_add_tail(&region->invalid, &file->invalid);
	return true;
}

static void ummunotify_raise_counter(struct ummunotify_file *file)
{
	u64 *shared = page_address(file->counter_page);

	lockdep_assert_held(&file->lock);

	WRITE_ONCE(*shared, ++file->counter);
}

/*
 * Does an invalidation meet the part of the address space that is known to be
 * unwatched? A process unmaps the same places again and again, and mostly not
 * those that it watches, so that this saves most searches.
 */
static bool ummunotify_is_quiet(const struct ummunotify_file *file,
				unsigned long start, unsigned long last)
{
	return file->quiet_start <= start && last <= file->quiet_last;
}

/* No region meets the bytes. */
static void ummunotify_add_quiet(struct ummunotify_file *file,
				 unsigned long start, unsigned long last)
{
	/* Both meet, or one follows the other. */
	if (start - 1 <= file->quiet_last && file->quiet_start - 1 <= last) {
		file->quiet_start = min(file->quiet_start, start);
		file->quiet_last = max(file->quiet_last, last);
	} else {
		file->quiet_start = start;
		file->quiet_last = last;
	}
}

/*
 * Record an invalidation for @region, the first that it meets, and the others.
 * Returns true if there is more to read than before. Not inline, for the sake of
 * the many invalidations that meet none.
 */
static noinline bool ummunotify_record_from(struct ummunotify_file *file,
					    struct interval_tree_node *node,
					    unsigned long start, unsigned long last,
					    bool protection)
{
	bool hit = false, more = false;

	lockdep_assert_held(&file->lock);

	for (; node; node = interval_tree_iter_next(node, start, last)) {
		struct ummunotify_region *region =
			container_of(node, struct ummunotify_region, itree);

		if (!ummunotify_counts(region, protection))
			continue;
		hit = true;
		more |= ummunotify_hit(file, region, start, last);
	}
	if (hit)
		ummunotify_raise_counter(file);
	return more;
}

/* Record an invalidation. Returns true if there is more to read than before. */
static bool ummunotify_record(struct ummunotify_file *file, unsigned long start,
			      unsigned long last, bool protection)
{
	struct interval_tree_node *node;

	lockdep_assert_held(&file->lock);

	if (ummunotify_is_quiet(file, start, last) || (protection && !file->nr_protection))
		return false;
	node = interval_tree_iter_first(&file->regions, start, last);
	if (node)
		return ummunotify_record_from(file, node, start, last, protection);
	ummunotify_add_quiet(file, start, last);
	return false;
}

/*
 * Record the end of an invalidation for the regions that were reported before
 * it. Returns true if there is more to read than before.
 */
static noinline bool ummunotify_record_again(struct ummunotify_file *file,
					     unsigned long start, unsigned long last,
					     bool protection)
{
	struct interval_tree_node *node;
	bool more = false;

	lockdep_assert_held(&file->lock);

	for (node = interval_tree_iter_first(&file->regions, start, last); node;
	     node = interval_tree_iter_next(node, start, last)) {
		struct ummunotify_region *region =
			container_of(node, struct ummunotify_region, itree);

		if (!ummunotify_counts(region, protection))
			continue;
		/* One that is waiting to be reported says enough. */
		if (region->early && region->hits == UMMUNOTIFY_NOT_HIT)
			more |= ummunotify_hit(file, region, start, last);
		region->early = false;
	}
	if (more)
		ummunotify_raise_counter(file);
	return more;
}

static noinline void ummunotify_wake_readers(struct ummunotify_file *file)
{
	/* Pairs with the barrier in wait_event(): they see the list, or we see them. */
	if (wq_has_sleeper(&file->readable))
		wake_up_interruptible_poll(&file->readable, EPOLLIN | EPOLLRDNORM);
	kill_fasync(&file->async, SIGIO, POLL_IN);
}

/*
 * Never sleeps, so that it makes no difference whether the range is blockable,
 * and never fails.
 */
static int ummunotify_invalidate_start(struct mmu_notifier *mn,
				       const struct mmu_notifier_range *range)
{
	struct ummunotify_file *file = container_of(mn, struct ummunotify_file, mn);
	enum ummunotify_kind kind = ummunotify_kind(range->event);
	unsigned long start = range->start, last = range->end - 1;
	bool protection = kind == UMMUNOTIFY_PROTECTION;
	bool more;

	if (kind == UMMUNOTIFY_NOTHING)
		return 0;

	spin_lock(&file->lock);
	if (likely(ummunotify_has_end(range)))
		ummunotify_running_add(file, start, last, protection);
	more = ummunotify_record(file, start, last, protection);
	spin_unlock(&file->lock);

	if (more)
		ummunotify_wake_readers(file);
	return 0;
}

static void ummunotify_invalidate_end(struct mmu_notifier *mn,
				      const struct mmu_notifier_range *range)
{
	struct ummunotify_file *file = container_of(mn, struct ummunotify_file, mn);
	enum ummunotify_kind kind = ummunotify_kind(range->event);
	unsigned long start = range->start, last = range->end - 1;
	bool more = false;

	if (kind == UMMUNOTIFY_NOTHING || unlikely(!ummunotify_has_end(range)))
		return;

	spin_lock(&file->lock);
	if (unlikely(ummunotify_running_del(file, start, last)))
		more = ummunotify_record_again(file, start, last,
					       kind == UMMUNOTIFY_PROTECTION);
	spin_unlock(&file->lock);

	if (more)
		ummunotify_wake_readers(file);
	/* Pairs with the barrier in wait_event(): the slot is free, or we see the waiter. */
	if (wq_has_sleeper(&file->ended))
		wake_up_all(&file->ended);
}

/*
 * The address space goes: its last user exits, or executes another program. No
 * invalidation is announced from here on, so that this is the one for all that
 * is unmapped now. It can be seen by those who have inherited a mapping of the
 * counter. Nobody is woken, for nobody who may read is left; and a program that
 * was executed must not have the SIGIO of the one before it.
 */
static void ummunotify_mm_release(struct mmu_notifier *mn, struct mm_struct *mm)
{
	struct ummunotify_file *file = container_of(mn, struct ummunotify_file, mn);

	spin_lock(&file->lock);
	ummunotify_record(file, 0, ULONG_MAX, false);
	spin_unlock(&file->lock);
}

static const struct mmu_notifier_ops ummunotify_mn_ops = {
	.invalidate_range_start	= ummunotify_invalidate_start,
	.invalidate_range_end	= ummunotify_invalidate_end,
	.release		= ummunotify_mm_release,
};

/* read and poll */

static bool ummunotify_is_readable(struct ummunotify_file *file)
{
	bool readable;

	spin_lock(&file->lock);
	readable = !list_empty(&file->invalid) || file->last_owed;
	spin_unlock(&file->lock);
	return readable;
}

/* Big enough to make the lock cheap, small enough for the stack. */
#define UMMUNOTIFY_BATCH	12

struct ummunotify_batch {
	struct ummunotify_event event[UMMUNOTIFY_BATCH];
	/* what each event reports; LAST has none */
	struct ummunotify_region *region[UMMUNOTIFY_BATCH];
	size_t len;
};

/*
 * Take up to @max events off the list. LAST comes where the list has run
 * empty, with the counter of that very moment.
 */
static void ummunotify_pick_up(struct ummunotify_file *file,
			       struct ummunotify_batch *batch, size_t max)
{
	struct ummunotify_region *region, *next;
	size_t n = 0;

	lockdep_assert_held(&file->deliver);

	max = min_t(size_t, max, UMMUNOTIFY_BATCH);
	spin_lock(&file->lock);
	list_for_each_entry_safe(region, next, &file->invalid, invalid) {
		bool once = region->hits == UMMUNOTIFY_HIT_ONCE;

		if (n == max)
			break;
		batch->event[n] = (struct ummunotify_event) {
			.type = UMMUNOTIFY_EVENT_TYPE_INVAL,
			.flags = once ? UMMUNOTIFY_EVENT_FLAG_HINT : 0,
			.hint_start = once ? region->hint_start : region->itree.start,
			.hint_end = (once ? region->hint_last : region->itree.last) + 1,
			.user_cookie_counter = region->cookie,
		};
		batch->region[n++] = region;
		region->hits = UMMUNOTIFY_NOT_HIT;
		list_del(&region->invalid);
		ummunotify_running_report(file, region);
	}
	if (n)
		file->last_owed = true;
	if (n < max && file->last_owed) {
		file->last_owed = false;
		batch->event[n] = (struct ummunotify_event) {
			.type = UMMUNOTIFY_EVENT_TYPE_LAST,
			.user_cookie_counter = file->counter,
		};
		batch->region[n++] = NULL;
	}
	spin_unlock(&file->lock);
	batch->len = n;
}

/* Undo ummunotify_pick_up(), keeping what has happened since. */
static void ummunotify_put_back(struct ummunotify_file *file,
				const struct ummunotify_batch *batch,
				bool last_was_owed)
{
	size_t i = batch->len;

	lockdep_assert_held(&file->deliver);

	spin_lock(&file->lock);
	while (i--) {
		const struct ummunotify_event *event = &batch->event[i];
		struct ummunotify_region *region = batch->region[i];

		if (!region)
			continue;
		if (region->hits != UMMUNOTIFY_NOT_HIT) {
			region->hits = UMMUNOTIFY_HIT_OFTEN;
			continue;
		}
		region->hits = event->flags & UMMUNOTIFY_EVENT_FLAG_HINT ?
			UMMUNOTIFY_HIT_ONCE : UMMUNOTIFY_HIT_OFTEN;
		region->hint_start = event->hint_start;
		region->hint_last = event->hint_end - 1;
		list_add(&region->invalid, &file->invalid);
	}
	file->last_owed = last_was_owed;
	spin_unlock(&file->lock);

	ummunotify_wake_readers(file);
}

/* Returns bytes delivered, 0 if there is nothing to deliver, or -EFAULT. */
static ssize_t ummunotify_deliver(struct ummunotify_file *file,
				  char __user *buf, size_t max)
{
	struct ummunotify_batch batch;
	size_t done = 0;

	lockdep_assert_held(&file->deliver);

	while (done < max) {
		/* Only written under deliver, so this is what it was at pick-up. */
		bool last_was_owed = READ_ONCE(file->last_owed);

		ummunotify_pick_up(file, &batch, max - done);
		if (!batch.len)
			break;
		if (copy_to_user(buf + done * sizeof(batch.event[0]), batch.event,
				 batch.len * sizeof(batch.event[0]))) {
			ummunotify_put_back(file, &batch, last_was_owed);
			if (!done)
				return -EFAULT;
			break;
		}
		done += batch.len;
		/* A LAST ends it, or a busy process could keep one read going for ever. */
		if (!batch.region[batch.len - 1])
			break;
	}
	return done * sizeof(batch.event[0]);
}

static ssize_t ummunotify_read(struct file *filp, char __user *buf,
			       size_t count, loff_t *pos)
{
	struct ummunotify_file *file = filp->private_data;
	size_t max = count / sizeof(struct ummunotify_event);
	ssize_t ret;

	if (!ummunotify_is_owner(file))
		return -EPERM;
	if (!max)
		return -EINVAL;
	ummunotify_mark_used(file);

	for (;;) {
		if (mutex_lock_interruptible(&file->deliver))
			return -ERESTARTSYS;
		ret = ummunotify_deliver(file, buf, max);
		mutex_unlock(&file->deliver);
		if (ret)
			return ret;
		if (filp->f_flags & O_NONBLOCK)
			return -EAGAIN;
		ret = wait_event_interruptible(file->readable, ummunotify_is_readable(file));
		if (ret)
			return ret;
	}
}

static __poll_t ummunotify_poll(struct file *filp, struct poll_table_struct *wait)
{
	struct ummunotify_file *file = filp->private_data;

	poll_wait(filp, &file->readable, wait);
	/* A kernel thread may finish a poll that the owner began: aio does. */
	if (!ummunotify_is_owner(file) && !(current->flags & PF_KTHREAD))
		return EPOLLERR;
	return ummunotify_is_readable(file) ? EPOLLIN | EPOLLRDNORM : 0;
}

static int ummunotify_fasync(int fd, struct file *filp, int on)
{
	struct ummunotify_file *file = filp->private_data;

	/* fd is -1 when the last close, by whomever, cleans up. */
	if (fd != -1 && !ummunotify_is_owner(file))
		return -EPERM;
	return fasync_helper(fd, filp, on, &file->async);
}

/* ioctl */

static int ummunotify_compare_cookie(const void *key, const struct rb_node *node)
{
	u64 cookie = *(const u64 *)key;
	u64 other = rb_entry(node, struct ummunotify_region, by_cookie)->cookie;

	return cookie < other ? -1 : cookie > other;
}

static int ummunotify_compare_regions(struct rb_node *new, const struct rb_node *node)
{
	return ummunotify_compare_cookie(&rb_entry(new, struct ummunotify_region,
						   by_cookie)->cookie, node);
}

/* The tree that a cookie is in, if it is. */
static struct rb_root *ummunotify_cookies(struct ummunotify_file *file, u64 cookie)
{
	return &file->cookies[hash_64(cookie, UMMUNOTIFY_COOKIE_BITS)];
}

static long ummunotify_exchange_features(struct ummunotify_file *file, u32 __user *arg)
{
	if (READ_ONCE(file->used))
		return -EINVAL;
	/*
	 * The mask asked for is not even looked at: callers of old pass one
	 * that they never initialised.
	 */
	if (put_user(0, arg))
		return -EFAULT;
	ummunotify_mark_used(file);
	return 0;
}

/* Returns 0 and the serial of the next invalidation, or an error. */
static int ummunotify_add(struct ummunotify_file *file,
			  struct ummunotify_region *region, u64 *serial)
{
	int ret = 0;

	spin_lock(&file->lock);
	if (file->nr_regions >= READ_ONCE(max_regions)) {
		ret = -ENOSPC;
	} else if (rb_find_add(&region->by_cookie, ummunotify_cookies(file, region->cookie),
			       ummunotify_compare_regions)) {
		ret = -EINVAL;
	} else {
		interval_tree_insert(&region->itree, &file->regions);
		file->nr_regions++;
		file->nr_protection += region->protection;
		if (region->itree.start <= file->quiet_last &&
		    file->quiet_start <= region->itree.last) {
			file->quiet_start = 1;
			file->quiet_last = 0;
		}
		*serial = file->serial;
	}
	spin_unlock(&file->lock);
	return ret;
}

static long ummunotify_register_region(struct ummunotify_file *file,
				       struct ummunotify_register_ioctl __user *arg)
{
	struct ummunotify_register_ioctl parm;
	struct ummunotify_newcomer new;
	struct ummunotify_region *region;
	int ret;

	if (copy_from_user(&parm, arg, sizeof(parm)))
		return -EFAULT;
	if (parm.flags & ~UMMUNOTIFY_REGION_FLAG_PROTECTION)
		return -EINVAL;
	if (parm.start >= parm.end || parm.end > file->mm->task_size)
		return -EINVAL;
	new.start = parm.start;
	new.last = parm.end - 1;
	new.protection = parm.flags & UMMUNOTIFY_REGION_FLAG_PROTECTION;

	region = kmem_cache_alloc(ummunotify_region_cache, UMMUNOTIFY_GFP);
	if (!region)
		return -ENOMEM;
	region->itree.start = new.start;
	region->itree.last = new.last;
	region->cookie = parm.user_cookie;
	region->hits = UMMUNOTIFY_NOT_HIT;
	region->early = false;
	region->protection = new.protection;

	ret = ummunotify_add(file, region, &new.serial);
	if (ret) {
		kmem_cache_free(ummunotify_region_cache, region);
		return ret;
	}
	return ummunotify_wait_for_older(file, &new);
}

static long ummunotify_unregister_region(struct ummunotify_file *file, u64 __user *arg)
{
	struct ummunotify_region *region = NULL;
	struct rb_root *cookies;
	struct rb_node *node;
	u64 cookie;

	if (copy_from_user(&cookie, arg, sizeof(cookie)))
		return -EFAULT;

	if (mutex_lock_killable(&file->deliver))
		return -EINTR;
	spin_lock(&file->lock);
	cookies = ummunotify_cookies(file, cookie);
	node = rb_find(&cookie, cookies, ummunotify_compare_cookie);
	if (node) {
		region = rb_entry(node, struct ummunotify_region, by_cookie);
		rb_erase(&region->by_cookie, cookies);
		interval_tree_remove(&region->itree, &file->regions);
		if (region->hits != UMMUNOTIFY_NOT_HIT)
			list_del(&region->invalid);
		file->nr_regions--;
		file->nr_protection -= region->protection;
	}
	spin_unlock(&file->lock);
	mutex_unlock(&file->deliver);

	if (!region)
		return -EINVAL;
	kmem_cache_free(ummunotify_region_cache, region);
	return 0;
}

static long ummunotify_ioctl(struct file *filp, unsigned int cmd, unsigned long arg)
{
	struct ummunotify_file *file = filp->private_data;
	void __user *argp = (void __user *)arg;

	if (!ummunotify_is_owner(file))
		return -EPERM;

	switch (cmd) {
	case UMMUNOTIFY_EXCHANGE_FEATURES:
		return ummunotify_exchange_features(file, argp);
	case UMMUNOTIFY_REGISTER_REGION:
		ummunotify_mark_used(file);
		return ummunotify_register_region(file, argp);
	case UMMUNOTIFY_UNREGISTER_REGION:
		ummunotify_mark_used(file);
		return ummunotify_unregister_region(file, argp);
	default:
		return -ENOTTY;
	}
}

/* mmap, open, release */

static vm_fault_t ummunotify_fault(struct vm_fault *vmf)
{
	struct ummunotify_file *file = vmf->vma->vm_file->private_data;

	get_page(file->counter_page);
	vmf->page = file->counter_page;
	return 0;
}

static const struct vm_operations_struct ummunotify_vm_ops = {
	.fault	= ummunotify_fault,
};

static int ummunotify_mmap(struct file *filp, struct vm_area_struct *vma)
{
	struct ummunotify_file *file = filp->private_data;

	if (!ummunotify_is_owner(file))
		return -EPERM;
	if (vma->vm_pgoff || vma_pages(vma) != 1)
		return -EINVAL;
	if (vma->vm_flags & VM_WRITE)
		return -EACCES;
	ummunotify_mark_used(file);

	/* Neither mprotect() nor mremap() may make more of it. */
	vm_flags_mod(vma, VM_DONTEXPAND, VM_MAYWRITE);
	vma->vm_ops = &ummunotify_vm_ops;
	return 0;
}

static int ummunotify_open(struct inode *inode, struct file *filp)
{
	struct ummunotify_file *file;
	int ret;

	if (filp->f_mode & FMODE_WRITE)
		return -EINVAL;
	/* A kernel thread has no memory to watch. */
	if (!current->mm)
		return -EINVAL;

	file = kzalloc(sizeof(*file), UMMUNOTIFY_GFP);
	if (!file)
		return -ENOMEM;
	file->counter_page = alloc_page(UMMUNOTIFY_GFP | __GFP_ZERO);
	if (!file->counter_page) {
		ret = -ENOMEM;
		goto free_file;
	}
	file->mm = current->mm;
	file->regions = RB_ROOT_CACHED;
	file->quiet_start = 1;
	spin_lock_init(&file->lock);
	INIT_LIST_HEAD(&file->invalid);
	mutex_init(&file->deliver);
	init_waitqueue_head(&file->readable);
	init_waitqueue_head(&file->ended);
	file->mn.ops = &ummunotify_mn_ops;

	/*
	 * Takes every lock that an invalidation of this mm could be under, so
	 * that each end that comes later has had its start counted.
	 */
	ret = mmu_notifier_register(&file->mn, file->mm);
	if (ret) {
		/* A signal came while it took the locks. */
		if (ret == -EINTR)
			ret = -ERESTARTSYS;
		goto free_page;
	}

	file->pid = task_tgid_nr(current);
	get_task_comm(file->comm, current->group_leader);
	mutex_lock(&ummunotify_files_lock);
	list_add_tail(&file->all, &ummunotify_files);
	mutex_unlock(&ummunotify_files_lock);

	filp->private_data = file;
	return stream_open(inode, filp);

free_page:
	__free_page(file->counter_page);
free_file:
	kfree(file);
	return ret;
}

static int ummunotify_release(struct inode *inode, struct file *filp)
{
	struct ummunotify_file *file = filp->private_data;
	struct ummunotify_region *region, *next;
	size_t i;

	mutex_lock(&ummunotify_files_lock);
	list_del(&file->all);
	mutex_unlock(&ummunotify_files_lock);

	/* Callbacks find no range from here on: the address space does not go, its file does. */
	spin_lock(&file->lock);
	file->regions = RB_ROOT_CACHED;
	spin_unlock(&file->lock);
	/* Waits for the callbacks that are running; there is none after it. */
	mmu_notifier_unregister(&file->mn, file->mm);

	for (i = 0; i < ARRAY_SIZE(file->cookies); i++) {
		rbtree_postorder_for_each_entry_safe(region, next, &file->cookies[i], by_cookie) {
			kmem_cache_free(ummunotify_region_cache, region);
			cond_resched();
		}
	}
	__free_page(file->counter_page);
	kfree(file);
	return 0;
}

static const struct file_operations ummunotify_fops = {
	.owner		= THIS_MODULE,
	.open		= ummunotify_open,
	.release	= ummunotify_release,
	.read		= ummunotify_read,
	.poll		= ummunotify_poll,
	.fasync		= ummunotify_fasync,
	.unlocked_ioctl	= ummunotify_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
	.mmap		= ummunotify_mmap,
};

static struct miscdevice ummunotify_misc = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "ummunotify",
	.fops	= &ummunotify_fops,
	/* Whoever opens it can watch himself only, with memory charged to him. */
	.mode	= 0444,
};

/* debugfs: a line for each open file */

static int ummunotify_contexts_show(struct seq_file *seq, void *unused)
{
	struct ummunotify_file *file;

	seq_puts(seq, "pid\tcomm\tranges\tcounter\treadable\trunning\n");
	mutex_lock(&ummunotify_files_lock);
	list_for_each_entry(file, &ummunotify_files, all) {
		unsigned long running;
		unsigned int ranges;
		bool readable;
		u64 counter;

		spin_lock(&file->lock);
		ranges = file->nr_regions;
		counter = file->counter;
		readable = !list_empty(&file->invalid) || file->last_owed;
		running = hweight_long(file->running_slots) + file->untracked;
		spin_unlock(&file->lock);

		seq_printf(seq, "%d\t", file->pid);
		seq_escape(seq, file->comm, " \t\n\\");
		seq_printf(seq, "\t%u\t%llu\t%d\t%lu\n", ranges, counter, readable, running);
		/* It will be shown anew, with more room; opening and closing wait. */
		if (seq_has_overflowed(seq))
			break;
	}
	mutex_unlock(&ummunotify_files_lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(ummunotify_contexts);

static int __init ummunotify_init(void)
{
	int ret;

	ummunotify_region_cache = KMEM_CACHE(ummunotify_region, SLAB_ACCOUNT);
	if (!ummunotify_region_cache)
		return -ENOMEM;

	ret = misc_register(&ummunotify_misc);
	if (ret) {
		kmem_cache_destroy(ummunotify_region_cache);
		return ret;
	}
	ummunotify_debugfs = debugfs_create_dir("ummunotify", NULL);
	debugfs_create_file("contexts", 0400, ummunotify_debugfs, NULL, &ummunotify_contexts_fops);
	return 0;
}

static void __exit ummunotify_exit(void)
{
	debugfs_remove_recursive(ummunotify_debugfs);
	misc_deregister(&ummunotify_misc);
	kmem_cache_destroy(ummunotify_region_cache);
}

module_init(ummunotify_init);
module_exit(ummunotify_exit);

MODULE_AUTHOR("The regcache authors");
MODULE_DESCRIPTION("Tells user space when the mapping of its memory changes");
MODULE_VERSION(UMMUNOTIFY_VERSION);
MODULE_LICENSE("GPL");
