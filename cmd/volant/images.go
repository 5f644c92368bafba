package main

import (
	"context"
	"io"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/client"
	"github.com/volant-edge/volant/image"
)

const imageForms = `The image is one of

  [REGISTRY/]NAME[:TAG][@sha256:DIGEST]  in a registry; docker.io if none is named
  registry.volant/NAME[:TAG]             pushed to this server before
  docker-archive:FILE[:NAME:TAG]         what "docker save" writes
  oci-archive:FILE[:TAG], oci:DIR[:TAG]  an OCI image layout
  sha256:DIGEST                          uploaded before

The server pulls images itself, with the credentials that "docker login" left on this machine; it does
not keep them. With --local, and for registries on localhost, this machine pulls and uploads.`

// image brings an image to the server and returns its digest. Files are uploaded; what is in a registry
// the server pulls, with the user's credentials for it, unless only this machine can.
func (d *deployment) image(ctx context.Context, ref string) (volant.Digest, error) {
	if digest := volant.Digest(ref); digest.Valid() {
		return digest, nil // uploaded before
	}
	if image.IsFile(ref) {
		src, err := image.OpenSource(ref)
		if err != nil {
			return "", err
		}
		return d.upload(ctx, src)
	}
	parsed, err := image.ParseRef(ref)
	if err != nil {
		return "", err
	}
	auth, err := credentials(parsed, d.Client)
	if err != nil {
		return "", err
	}
	if d.local || onlyHere(parsed.Registry, d.Client) {
		src, err := image.Remote{Auth: auth}.Open(ctx, ref)
		if err != nil {
			return "", err
		}
		return d.upload(ctx, src)
	}
	req := api.ResolveImage{Image: ref}
	if auth != (image.Auth{}) {
		a := api.RegistryAuth(auth)
		req.Auth = &a
	}
	p := newProgress(d.out, d.json)
	digest, err := d.Client.Resolve(ctx, req, func(pr api.Progress) { p.show("Pulling", pr.Done, pr.Total) })
	p.end()
	if err == nil {
		d.sayf("Image %s: %s.", digest, parsed)
	}
	return digest, err
}

// onlyHere says whether a registry's name means another host to the server than to this machine.
func onlyHere(registry string, c *client.Client) bool {
	if registry == c.Host() {
		return false // it is the server's own
	}
	host := strings.Trim(registry, "[]")
	if i := strings.LastIndexByte(registry, ':'); i >= 0 && !strings.HasSuffix(registry, "]") {
		host = strings.Trim(registry[:i], "[]")
	}
	return host == "localhost" || host == "::1" || strings.HasPrefix(host, "127.")
}

// credentials are the user's for a registry, as `docker login` keeps them. The server's own registry
// needs none.
func credentials(ref image.Ref, c *client.Client) (image.Auth, error) {
	if ref.Registry == c.Host() {
		return image.Auth{}, nil
	}
	repo, err := name.NewRepository(ref.Registry + "/" + ref.Repository)
	if err != nil {
		return image.Auth{}, volant.Invalidf("%s is no name of an image", ref)
	}
	found, err := authn.DefaultKeychain.Resolve(repo)
	if err != nil {
		return image.Auth{}, volant.Errorf(volant.ErrPrecondition, "Docker's credentials for %s cannot be read: %v", ref.Registry, err).
			WithRemedy("check ~/.docker/config.json, or `docker login %s` again", ref.Registry)
	}
	a, err := found.Authorization()
	if err != nil {
		return image.Auth{}, volant.Errorf(volant.ErrPrecondition, "Docker's credentials for %s: %v", ref.Registry, err).
			WithRemedy("`docker login %s` again", ref.Registry)
	}
	return image.Auth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}, nil
}

// upload sends the blobs the server does not have, and closes the source.
func (d *deployment) upload(ctx context.Context, src *image.Source) (volant.Digest, error) {
	defer func() { _ = src.Close() }() // only read
	sent := int64(0)
	p := newProgress(d.out, d.json)
	err := src.Each(func(im image.Progress) { p.show("Uploading", im.Done, im.Total) }, func(b image.Blob, r io.Reader) error {
		has, err := d.Client.HasBlob(ctx, b.Digest)
		if err != nil || has {
			return err
		}
		sent += b.Size
		return d.Client.PutBlob(ctx, b.Digest, b.Size, r)
	})
	p.end()
	if err != nil {
		return "", err
	}
	d.sayf("Image %s: %s of %s uploaded.", src.Digest, size(sent), size(src.Size()))
	return src.Digest, nil
}
