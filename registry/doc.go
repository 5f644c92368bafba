// Package registry is the server's own registry of images: what `docker push`, crane and skopeo speak to.
//
//	/v2/NAME/… ─► Caller (who, for which organization) ─► blobs and manifests in the image store, tags in the intent
//
// # Invariants
//
//   - A repository belongs to one organization. NAME is REPOSITORY, of the token's own organization, or
//     ORGANIZATION/REPOSITORY. Another organization's is denied before it is known whether it exists.
//   - Blobs and manifests are seen by organizations that have shown their content, and by no other: asking
//     by digest tells nothing of others' blobs, and mounting gives nothing.
//   - A manifest is taken when all that it names is there; a tag names a manifest that is there.
//   - Uploads are bounded in number and time, tags in number, bytes by the organization's quota.
//
// # Sources
//
// OCI distribution specification 1.1. Its errors have its form; with "error", "status" and "remedy"
// beside it, so that they are errors of the API as well.
//
// # Not here
//
// Who a caller is and may do: package control. How images are kept: package image. Referrers and
// deletion of single blobs: not served.
package registry
