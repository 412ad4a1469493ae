"""Every structure of the protocol, as in the header of version 7.45.

A request's own structure and its reply's have the header's names. What came after 7.38 carries its
version; everything else is older.
"""

from __future__ import annotations

from typing import Final

from .layout import Layout

IN_HEADER: Final = Layout(
    "fuse_in_header",
    "len:I opcode:I unique:Q nodeid:Q uid:I gid:I pid:I total_extlen:H _padding:H",
)
OUT_HEADER: Final = Layout("fuse_out_header", "len:I error:i unique:Q")
NOTHING: Final = Layout("")

# Parts of others

ATTR: Final = Layout(
    "fuse_attr",
    "ino:Q size:Q blocks:Q atime:Q mtime:Q ctime:Q atimensec:I mtimensec:I ctimensec:I mode:I "
    "nlink:I uid:I gid:I rdev:I blksize:I flags:I",
)
FILE_LOCK: Final = Layout("fuse_file_lock", "start:Q end:Q type:I pid:I")
SX_TIME: Final = Layout("fuse_sx_time", "tv_sec:q tv_nsec:I _reserved:i")  # 7.39
STATX: Final = Layout(  # 7.39
    "fuse_statx",
    "mask:I blksize:I attributes:Q nlink:I uid:I gid:I mode:H _spare0:H ino:Q size:Q blocks:Q "
    "attributes_mask:Q atime:time btime:time ctime:time mtime:time rdev_major:I rdev_minor:I "
    "dev_major:I dev_minor:I _spare2:Q*14",
    time=SX_TIME,
)
DIRENT: Final = Layout("fuse_dirent", "ino:Q off:Q namelen:I type:I")

# Requests

FORGET_IN: Final = Layout("fuse_forget_in", "nlookup:Q")
FORGET_ONE: Final = Layout("fuse_forget_one", "nodeid:Q nlookup:Q")
BATCH_FORGET_IN: Final = Layout("fuse_batch_forget_in", "count:I _dummy:I")
GETATTR_IN: Final = Layout("fuse_getattr_in", "getattr_flags:I _dummy:I fh:Q")
SETATTR_IN: Final = Layout(
    "fuse_setattr_in",
    "valid:I _padding:I fh:Q size:Q lock_owner:Q atime:Q mtime:Q ctime:Q atimensec:I mtimensec:I "
    "ctimensec:I mode:I _unused4:I uid:I gid:I _unused5:I",
)
MKNOD_IN: Final = Layout("fuse_mknod_in", "mode:I rdev:I umask:I _padding:I")
MKDIR_IN: Final = Layout("fuse_mkdir_in", "mode:I umask:I")
RENAME_IN: Final = Layout("fuse_rename_in", "newdir:Q")
RENAME2_IN: Final = Layout("fuse_rename2_in", "newdir:Q flags:I _padding:I")
LINK_IN: Final = Layout("fuse_link_in", "oldnodeid:Q")
OPEN_IN: Final = Layout("fuse_open_in", "flags:I open_flags:I")
CREATE_IN: Final = Layout("fuse_create_in", "flags:I mode:I umask:I open_flags:I")
RELEASE_IN: Final = Layout("fuse_release_in", "fh:Q flags:I release_flags:I lock_owner:Q")
FLUSH_IN: Final = Layout("fuse_flush_in", "fh:Q _unused:I _padding:I lock_owner:Q")
READ_IN: Final = Layout(
    "fuse_read_in", "fh:Q offset:Q size:I read_flags:I lock_owner:Q flags:I _padding:I"
)
WRITE_IN: Final = Layout(
    "fuse_write_in", "fh:Q offset:Q size:I write_flags:I lock_owner:Q flags:I _padding:I"
)
FSYNC_IN: Final = Layout("fuse_fsync_in", "fh:Q fsync_flags:I _padding:I")
SETXATTR_IN: Final = Layout("fuse_setxattr_in", "size:I flags:I setxattr_flags:I _padding:I")
SETXATTR_SHORT_IN: Final = Layout("", "size:I flags:I")
"""What a kernel sends with which SETXATTR_EXT was not agreed: the first 8 octets."""
GETXATTR_IN: Final = Layout("fuse_getxattr_in", "size:I _padding:I")
LK_IN: Final = Layout("fuse_lk_in", "fh:Q owner:Q lk:lock lk_flags:I _padding:I", lock=FILE_LOCK)
ACCESS_IN: Final = Layout("fuse_access_in", "mask:I _padding:I")
INIT_IN: Final = Layout(
    "fuse_init_in", "major:I minor:I max_readahead:I flags:I flags2:I _unused:I*11"
)
INIT_SHORT_IN: Final = Layout("", "major:I minor:I max_readahead:I flags:I")
"""What a kernel before 7.36 sends: it has no more than 32 flags."""
CUSE_INIT_IN: Final = Layout("cuse_init_in", "major:I minor:I _unused:I flags:I")
INTERRUPT_IN: Final = Layout("fuse_interrupt_in", "unique:Q")
BMAP_IN: Final = Layout("fuse_bmap_in", "block:Q blocksize:I _padding:I")
IOCTL_IN: Final = Layout("fuse_ioctl_in", "fh:Q flags:I cmd:I arg:Q in_size:I out_size:I")
IOCTL_IOVEC: Final = Layout("fuse_ioctl_iovec", "base:Q len:Q")
POLL_IN: Final = Layout("fuse_poll_in", "fh:Q kh:Q flags:I events:I")
FALLOCATE_IN: Final = Layout("fuse_fallocate_in", "fh:Q offset:Q length:Q mode:I _padding:I")
LSEEK_IN: Final = Layout("fuse_lseek_in", "fh:Q offset:Q whence:I _padding:I")
COPY_FILE_RANGE_IN: Final = Layout(
    "fuse_copy_file_range_in",
    "fh_in:Q off_in:Q nodeid_out:Q fh_out:Q off_out:Q len:Q flags:Q",
)
SETUPMAPPING_IN: Final = Layout("fuse_setupmapping_in", "fh:Q foffset:Q len:Q flags:Q moffset:Q")
REMOVEMAPPING_IN: Final = Layout("fuse_removemapping_in", "count:I")
REMOVEMAPPING_ONE: Final = Layout("fuse_removemapping_one", "moffset:Q len:Q")
SYNCFS_IN: Final = Layout("fuse_syncfs_in", "_padding:Q")
STATX_IN: Final = Layout(  # 7.39
    "fuse_statx_in", "getattr_flags:I _reserved:I fh:Q sx_flags:I sx_mask:I"
)
NOTIFY_RETRIEVE_IN: Final = Layout(
    "fuse_notify_retrieve_in",
    "_dummy1:Q offset:Q size:I _dummy2:I _dummy3:Q _dummy4:Q",
)

# Extensions of requests

SECCTX: Final = Layout("fuse_secctx", "size:I _padding:I")
SECCTX_HEADER: Final = Layout("fuse_secctx_header", "size:I nr_secctx:I")
EXT_HEADER: Final = Layout("fuse_ext_header", "size:I type:I")
SUPP_GROUPS: Final = Layout("fuse_supp_groups", "nr_groups:I")  # 7.38, not in all of its headers

# Replies

ENTRY_OUT: Final = Layout(
    "fuse_entry_out",
    "nodeid:Q generation:Q entry_valid:Q attr_valid:Q entry_valid_nsec:I attr_valid_nsec:I "
    "attr:attributes",
    attributes=ATTR,
)
DIRENTPLUS: Final = Layout(
    "fuse_direntplus", "entry_out:entry dirent:dirent", entry=ENTRY_OUT, dirent=DIRENT
)
ATTR_OUT: Final = Layout(
    "fuse_attr_out",
    "attr_valid:Q attr_valid_nsec:I _dummy:I attr:attributes",
    attributes=ATTR,
)
STATX_OUT: Final = Layout(  # 7.39
    "fuse_statx_out",
    "attr_valid:Q attr_valid_nsec:I flags:I _spare:Q*2 stat:statx",
    statx=STATX,
)
OPEN_OUT: Final = Layout("fuse_open_out", "fh:Q open_flags:I backing_id:i")  # 7.40; was padding
WRITE_OUT: Final = Layout("fuse_write_out", "size:I _padding:I")
KSTATFS: Final = Layout(
    "fuse_kstatfs",
    "blocks:Q bfree:Q bavail:Q files:Q ffree:Q bsize:I namelen:I frsize:I _padding:I _spare:I*6",
)
GETXATTR_OUT: Final = Layout("fuse_getxattr_out", "size:I _padding:I")
LK_OUT: Final = Layout("fuse_lk_out", "lk:lock", lock=FILE_LOCK)
INIT_OUT: Final = Layout(
    "fuse_init_out",
    "major:I minor:I max_readahead:I flags:I max_background:H congestion_threshold:H max_write:I "
    "time_gran:I max_pages:H map_alignment:H flags2:I "
    "max_stack_depth:I request_timeout:H _unused:H*11",  # 7.40, 7.43; were unused
)
CUSE_INIT_OUT: Final = Layout(
    "cuse_init_out",
    "major:I minor:I _unused:I flags:I max_read:I max_write:I dev_major:I dev_minor:I _spare:I*10",
)
BMAP_OUT: Final = Layout("fuse_bmap_out", "block:Q")
IOCTL_OUT: Final = Layout("fuse_ioctl_out", "result:i flags:I in_iovs:I out_iovs:I")
POLL_OUT: Final = Layout("fuse_poll_out", "revents:I _padding:I")
LSEEK_OUT: Final = Layout("fuse_lseek_out", "offset:Q")
COPY_FILE_RANGE_OUT: Final = Layout("fuse_copy_file_range_out", "bytes_copied:Q")  # 7.45

# Notifications

NOTIFY_POLL_WAKEUP_OUT: Final = Layout("fuse_notify_poll_wakeup_out", "kh:Q")
NOTIFY_INVAL_INODE_OUT: Final = Layout("fuse_notify_inval_inode_out", "ino:Q off:q len:q")
NOTIFY_INVAL_ENTRY_OUT: Final = Layout("fuse_notify_inval_entry_out", "parent:Q namelen:I flags:I")
NOTIFY_DELETE_OUT: Final = Layout("fuse_notify_delete_out", "parent:Q child:Q namelen:I _padding:I")
NOTIFY_STORE_OUT: Final = Layout("fuse_notify_store_out", "nodeid:Q offset:Q size:I _padding:I")
NOTIFY_RETRIEVE_OUT: Final = Layout(
    "fuse_notify_retrieve_out", "notify_unique:Q nodeid:Q offset:Q size:I _padding:I"
)
NOTIFY_PRUNE_OUT: Final = Layout("fuse_notify_prune_out", "count:I _padding:I _spare:Q")  # 7.45

LAYOUTS: Final[dict[str, Layout]] = {
    value.name: value for value in list(globals().values()) if isinstance(value, Layout)
}
"""Every layout by its name in the header."""
del LAYOUTS[""]
