// Package image keeps OCI images and turns them into root disks.
//
//	NAME:TAG in a registry, docker-archive:FILE, oci-archive:FILE, oci:DIR
//	  ─► Source ─► PutFor ─► blobs/sha256 ─► Rootfs ─► rootfs/HEX.erofs
//
// A client reads an image with a [Source] and uploads its blobs by digest; the server does the same
// with [Store.Import], or pulls from a registry with [Store.Pull]. What other nodes have comes by [Store.Complete], in
// pieces and from several of them at once. [Store.Rootfs] merges the layers, once per manifest digest, into one read-only
// EROFS file that all machines of the image share; [Store.Scratch] makes their writable disks.
//
// # Invariants
//
//   - A file below blobs has the content its name says: it is hashed while it is written, and renamed
//     into place only when it is right. What it unpacks to is hashed when it is converted.
//   - A file below rootfs is complete, read-only and never changed. Its record, beside it, is written last.
//   - An error leaves nothing half-made: work is done in tmp, which Open empties.
//   - Nothing read from an image is trusted with a length, a count or a path. Layers are merged in
//     memory by name, so no path of theirs ever reaches the host's file system.
//   - An organization has a blob only when it has shown its content: it uploaded it, or its registry sent
//     it. A digest alone gives nothing, and does not even tell whether the blob is here. See [Store.Owns].
//   - Whoever pulls for others connects only where its transport allows; see [NewTransport]. Credentials
//     live as long as the call they came with.
//   - What other nodes send is trusted no more than an upload: its digest decides, and who sent a damaged blob is not
//     asked for it again. Pieces that came are kept, below parts, for a later call. Whose a blob is, nodes tell each other.
//   - Equal images give equal root disks, on every node.
//
// # What becomes of a layer's entries
//
// Names are taken from the image's root, with or without a slash in front. A parent that is a symlink
// is followed inside the image. A name, link or symlink parent that climbs out of the root is refused.
// Device nodes are left out, since the guest has its own /dev, and so are attributes of overlayfs and
// of unknown namespaces; the record's notes say so. Whiteouts and opaque marks hide what lower layers
// put there, never what their own layer does, wherever in the layer they stand.
//
// # Sources
//
// OCI image specification 1.1: image-layout.md, manifest.md, image-index.md, config.md, layer.md.
// OCI distribution specification 1.1, and Docker's token authentication, by go-containerregistry's
// transport. The archive of `docker save`: Docker's image specification 1.2.
// Extended attributes in tar: the SCHILY.xattr records of PAX.
//
// # Not here
//
// The format of the root disk: package image/erofs. Who may upload and what is kept: packages control and host.
package image
