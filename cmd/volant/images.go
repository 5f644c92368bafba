package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
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
	own := parsed.Registry == ownRegistry || parsed.Registry == d.Host()
	if own {
		parsed.Registry = ownRegistry
	}
	auth, err := credentials(parsed)
	if err != nil {
		return "", err
	}
	if !own && (d.local || onlyHere(parsed.Registry)) {
		src, err := image.Remote{Auth: auth}.Open(ctx, ref)
		if err != nil {
			return "", err
		}
		return d.upload(ctx, src)
	}
	req := api.ResolveImage{Image: parsed.String(), OrgSlug: d.org}
	if auth != (image.Auth{}) {
		a := api.RegistryAuth(auth)
		req.Auth = &a
	}
	p := newProgress(d.out, d.json)
	digest, err := d.Resolve(ctx, req, func(pr api.Progress) { p.show("Pulling", pr.Done, pr.Total) })
	p.end()
	if err == nil {
		d.sayf("Image %s: %s.", digest, parsed)
	}
	return digest, err
}

// onlyHere says whether a registry's name means another host to the server than to this machine.
func onlyHere(registry string) bool {
	host := strings.Trim(registry, "[]")
	if i := strings.LastIndexByte(registry, ':'); i >= 0 && !strings.HasSuffix(registry, "]") {
		host = strings.Trim(registry[:i], "[]")
	}
	return host == "localhost" || host == "::1" || strings.HasPrefix(host, "127.")
}

// ownRegistry is what the server calls its own registry.
const ownRegistry = "registry.volant"

// credentials are the user's for a registry, as `docker login` keeps them. The server's own registry
// needs none.
func credentials(ref image.Ref) (image.Auth, error) {
	if ref.Registry == ownRegistry {
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
		has, err := d.HasBlob(ctx, b.Digest)
		if err != nil || has {
			return err
		}
		sent += b.Size
		return d.PutBlob(ctx, b.Digest, b.Size, r)
	})
	p.end()
	if err != nil {
		return "", err
	}
	d.sayf("Image %s: %s of %s uploaded.", src.Digest, size(sent), size(src.Size()))
	return src.Digest, nil
}

func newImage(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "image", Short: "Keep images in the server's own registry", Aliases: []string{"images"},
		Long: `Keep images in the server's own registry.

Docker's tools push to it too: "docker login ADDRESS" with any user name and an API token as the password,
then "docker push ADDRESS/NAME:TAG". Deploys name such an image registry.volant/NAME:TAG.`,
	}
	list := &cobra.Command{
		Use: "list", Short: "List the images in the server's own registry", Args: cobra.NoArgs, Aliases: []string{"ls"},
		RunE: g.ask(func(c *call) error {
			list, err := c.Images(c.ctx)
			if err != nil {
				return err
			}
			return sayRows(c, list, []string{"NAME", "TAG", "DIGEST", "SIZE", "AGE", "BY"}, func(i api.Image) []string {
				return []string{i.Name, i.Tag, short(i.Digest), size(i.Size), ago(i.UpdatedAt), i.Actor}
			})
		}),
	}
	rm := &cobra.Command{
		Use: "rm NAME:TAG", Short: "Remove a tag from the server's own registry", Args: cobra.ExactArgs(1), Aliases: []string{"remove"},
		Long: `Remove a tag from the server's own registry.

Machines and releases of the image keep it. What nothing needs any more goes when the disk fills up.`,
		RunE: g.ask(removeImage),
	}
	cmd.AddCommand(newImagePush(g), list, rm)
	return cmd
}

func newImagePush(g *globals) *cobra.Command {
	var local bool
	cmd := &cobra.Command{
		Use: "push IMAGE NAME[:TAG]", Short: "Put an image into the server's own registry", Args: cobra.ExactArgs(2),
		Long: "Put an image into the server's own registry.\n\n" + imageForms,
		RunE: g.ask(func(c *call) error {
			name, tag, err := c.ownName(c.args[1])
			if err != nil {
				return err
			}
			d := &deployment{call: c, out: c.cmd.ErrOrStderr(), local: local}
			digest, err := d.image(c.ctx, c.args[0])
			if err != nil {
				return err
			}
			if err := c.TagImage(c.ctx, name, tag, digest); err != nil {
				return err
			}
			return c.say(api.Image{Name: name, Tag: tag, Digest: string(digest)}, func(w io.Writer) {
				fmt.Fprintf(w, "Pushed. Deploy it with --image %s/%s:%s\n", ownRegistry, name, tag)
			})
		}),
	}
	cmd.Flags().BoolVar(&local, "local", false, "pull the image on this machine and upload it, instead of letting the server pull it")
	return cmd
}

func removeImage(c *call) error {
	name, tag, err := c.ownName(c.args[0])
	if err != nil {
		return err
	}
	if !strings.HasSuffix(c.args[0], ":"+tag) {
		return volant.Invalidf("which tag of %s?", name).WithRemedy("write NAME:TAG; see `volant image list`")
	}
	if err := c.UntagImage(c.ctx, name, tag); err != nil {
		return err
	}
	return c.say(map[string]bool{"ok": true}, func(w io.Writer) { fmt.Fprintf(w, "Removed %s:%s.\n", name, tag) })
}

// ownName reads [registry.volant/][ORGANIZATION/]NAME[:TAG].
func (c *call) ownName(text string) (repository, tag string, err error) {
	text = strings.TrimPrefix(strings.TrimPrefix(text, ownRegistry+"/"), c.Host()+"/")
	r, err := image.ParseRef(ownRegistry + "/" + text)
	if err != nil || r.Digest != "" {
		return "", "", volant.Invalidf("%q is no name for an image here", text).WithRemedy("write NAME[:TAG] or ORGANIZATION/NAME[:TAG]")
	}
	return r.Repository, r.Tag, nil
}
