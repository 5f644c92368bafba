// Package erofs writes EROFS file systems: read-only, uncompressed, in one pass, without root.
//
//	Writer.Data(content) … ─► blocks of files ─► Finish(root) ─► directories, inodes, superblock
//
// # Layout
//
//	block 0    1,024 unused bytes, the superblock, zeros
//	…          contents of regular files, each at the start of a block, in the order of Data
//	…          full blocks of directories and long symlinks
//	meta       inodes in slots of 32 bytes, each followed by its attributes and its inline tail
//
// Metadata comes last since links and directories are known only after the last layer was read. The
// number of an inode is its slot after the start of meta; the root's is 1, so that no inode is 0.
//
// # Invariants
//
//   - Equal calls give equal bytes: names are sorted, nothing depends on the clock or on map order.
//   - An inline tail never crosses a block, since Linux refuses such an inode.
//   - Content that no name refers to in the end is punched out of the file, and so costs no disk.
//   - All inodes are of the extended kind: 32-bit owners, a time with nanoseconds.
//
// # Sources
//
// The on-disk format as in Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of Linux 6.1;
// its limits as checked by fs/erofs/inode.c, dir.c, xattr.c and data.c.
//
// # Not here
//
// What the tree is made of (layers, whiteouts, limits): package image. Compression and several devices: not used.
package erofs
