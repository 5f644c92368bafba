package control

import (
	"context"
	"net/http"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/image"
)

// Pull says what to pull, for whom, and by which right.
type Pull struct {
	Ref  string
	Org  volant.OrgID
	Auth api.RegistryAuth
	// Anywhere lets the server connect to addresses inside its own network: the operator asks.
	Anywhere bool
}

func pathDigest(c *call) (volant.Digest, error) {
	d := volant.Digest(c.r.PathValue("digest"))
	if !d.Valid() {
		return "", volant.Invalidf("digest %q: use sha256: and 64 hex digits", c.r.PathValue("digest"))
	}
	return d, nil
}

func (s *Server) hasBlob(w http.ResponseWriter, c *call) error {
	d, err := pathDigest(c)
	if err != nil {
		return err
	}
	if !s.Images.Has(c.who.org, d) {
		return volant.Errorf(volant.ErrNotFound, "blob %s is not here", d)
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) putBlob(w http.ResponseWriter, c *call) error {
	d, err := pathDigest(c)
	if err != nil {
		return err
	}
	if err := s.Images.Put(c.ctx(), c.who.org, d, steady{c.r.Body, http.NewResponseController(w)}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// prepareImage builds the root disk of an uploaded image and streams how far it is.
func (s *Server) prepareImage(w http.ResponseWriter, c *call) error {
	d, err := pathDigest(c)
	if err != nil {
		return err
	}
	if !s.Images.Has(c.who.org, d) {
		return volant.Errorf(volant.ErrNotFound, "image %s was not uploaded here", d).WithRemedy("upload its blobs first")
	}
	return s.progress(w, c, func(tell func(string, int64, int64)) (volant.Digest, error) {
		return d, s.Images.Prepare(c.ctx(), d, tell)
	})
}

// resolveImage pulls the image that a reference names, if it is not here, and streams how far it is. The
// last line has its digest, which a release can be made of.
func (s *Server) resolveImage(w http.ResponseWriter, c *call) error {
	var in api.ResolveImage
	if err := c.read(w, &in); err != nil {
		return err
	}
	org := c.who.org
	if in.OrgSlug != "" {
		org = volant.OrgID(in.OrgSlug)
	}
	if err := c.grant(org, c.who.app); err != nil {
		return err
	}
	p := Pull{Ref: in.Image, Org: org, Anywhere: c.who.org == AnyOrg}
	if in.Auth != nil {
		p.Auth = *in.Auth
	}
	if err := checkRef(in.Image); err != nil {
		return err
	}
	return s.progress(w, c, func(tell func(string, int64, int64)) (volant.Digest, error) {
		return s.Images.Resolve(c.ctx(), p, tell)
	})
}

// progress streams a long work, and then the digest it came to or the error.
func (s *Server) progress(w http.ResponseWriter, c *call, work func(tell func(phase string, done, total int64)) (volant.Digest, error)) error {
	out := c.stream(w)
	d, err := work(func(phase string, done, total int64) {
		_ = out.send(api.Progress{Phase: phase, Done: done, Total: total}) // a caller that is gone ends ctx
	})
	if err == nil {
		return out.send(api.Progress{Phase: "done", Digest: string(d)})
	}
	body := s.body(c, err)
	return out.send(api.Progress{Phase: "failed", Error: &body})
}

func checkRef(ref string) error {
	switch {
	case ref == "":
		return volant.Invalidf("no image is named").WithRemedy("name one as [REGISTRY/]NAME[:TAG], or the digest of an uploaded one")
	case image.IsFile(ref):
		return volant.Invalidf("image %q is a file of yours", ref).WithRemedy("upload its blobs and name the digest of its manifest; `volant deploy` does both")
	}
	_, err := image.ParseRef(ref)
	return err
}

// image makes sure that an image is here for the organization, with its root disk, and returns its
// digest. Ref is the digest of an uploaded image, or a reference to one in a registry, which is pulled.
func (s *Server) image(ctx context.Context, c *call, org volant.OrgID, ref string) (volant.Digest, error) {
	d := volant.Digest(ref)
	if d.Valid() {
		if !s.Images.Has(c.who.org, d) && !s.Images.Has(org, d) {
			return "", volant.Errorf(volant.ErrNotFound, "image %s was not uploaded here", d).WithRemedy("upload its blobs first; `volant deploy` does")
		}
		if err := s.Images.Prepare(ctx, d, nil); err != nil { // it may come from another node by that
			return "", err
		}
		return d, s.Images.Grant(org, d)
	}
	if err := checkRef(ref); err != nil {
		return "", err
	}
	d, err := s.Images.Resolve(ctx, Pull{Ref: ref, Org: org, Anywhere: c.who.org == AnyOrg}, nil)
	if err != nil {
		return "", err
	}
	return d, s.Images.Prepare(ctx, d, nil)
}

// imageRef is the image of a machine as clients of the API read it.
func imageRef(configured string, d volant.Digest) api.ImageRef {
	out := api.ImageRef{Repository: configured, Digest: string(d)}
	if volant.Digest(configured).Valid() || image.IsFile(configured) {
		return out
	}
	if r, err := image.ParseRef(configured); err == nil {
		out.Registry, out.Repository, out.Tag = r.Registry, r.Repository, r.Tag
	}
	if out.Registry == "docker.io" {
		out.Registry = "registry-1.docker.io" // what Fly's clients know it by
	}
	return out
}
