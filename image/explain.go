package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/volant-edge/volant"
)

// explain makes an error for people of what went wrong between us and a registry: the cause, then
// what to do. Errors that are for people already stay as they are.
func (f *fetcher) explain(err error) error {
	var known *volant.Error
	var answer *transport.Error
	var asked *url.Error
	reg := f.ref.Registry
	switch {
	case err == nil:
		return nil
	case errors.As(err, &asked) && errors.As(err, &known):
		return known // our own refusal, without the request around it
	case errors.As(err, &known), errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &answer):
		return f.refused(answer)
	case errors.Is(err, errSilent), errors.Is(err, context.DeadlineExceeded):
		return volant.Errorf(volant.ErrUnavailable, "registry %s was silent for %s", reg, f.r.Stall).
			WithRemedy("try again later; if it works from your own machine, deploy with --local")
	case errors.Is(err, errPlain):
		return volant.Errorf(volant.ErrForbidden, "registry %s wants to be spoken to without TLS", reg).
			WithRemedy("give it a certificate; or the server's operator lists it in image.insecure_registries")
	}
	if e := f.unsafe(err); e != nil {
		return e
	}
	return f.unreachable(err)
}

// refused explains a registry's answer.
func (f *fetcher) refused(e *transport.Error) error {
	reg, name := f.ref.Registry, f.ref.Registry+"/"+f.ref.Repository
	code := func(want ...transport.ErrorCode) bool {
		for _, d := range e.Errors {
			if slices.Contains(want, d.Code) {
				return true
			}
		}
		return false
	}
	switch {
	case e.StatusCode == http.StatusTooManyRequests || code(transport.TooManyRequestsErrorCode):
		if f.r.Auth == (Auth{}) {
			return volant.Errorf(volant.ErrUnavailable, "registry %s limits how often it is asked (429)", reg).
				WithRemedy("wait a while, or `docker login %s`: users it knows may ask more often", reg)
		}
		return volant.Errorf(volant.ErrUnavailable, "registry %s limits how often it is asked (429)", reg).WithRemedy("wait a while")
	case e.StatusCode == http.StatusUnauthorized, e.StatusCode == http.StatusForbidden,
		code(transport.UnauthorizedErrorCode, transport.DeniedErrorCode):
		if f.r.Auth == (Auth{}) {
			return volant.Errorf(volant.ErrForbidden, "registry %s shows %s to users it knows only, or has no such image", reg, f.ref.Repository).
				WithRemedy("check the name; if the image is private, `docker login %s` and deploy again", reg)
		}
		return volant.Errorf(volant.ErrForbidden, "registry %s does not take the %s for %s", reg, f.r.Auth, f.ref.Repository).
			WithRemedy("`docker login %s` with the right password, and check that this user may pull the image", reg)
	case code(transport.NameUnknownErrorCode):
		return volant.Errorf(volant.ErrNotFound, "registry %s has no image %s", reg, f.ref.Repository).WithRemedy("check the name")
	case e.StatusCode == http.StatusNotFound && strings.Contains(e.Request.URL.Path, "/blobs/"):
		return volant.Errorf(volant.ErrNotFound, "registry %s has the image, but not all of its blobs", reg).WithRemedy("push the image again")
	case e.StatusCode == http.StatusNotFound && strings.HasSuffix(e.Request.URL.Path, "/v2/"):
		return volant.Errorf(volant.ErrNotFound, "%s is no registry of images", reg).WithRemedy("check the name: it is what stands before the first slash")
	case e.StatusCode == http.StatusNotFound:
		what := "the tag " + f.ref.Tag
		if f.ref.Digest != "" {
			what = "the digest " + string(f.ref.Digest)
		}
		return volant.Errorf(volant.ErrNotFound, "%s has no image of %s", name, what).WithRemedy("it may have been removed: check the tag, or push the image again")
	case e.StatusCode >= 500:
		return volant.Errorf(volant.ErrUnavailable, "registry %s has trouble of its own: it answers %d%s", reg, e.StatusCode, said(e)).WithRemedy("try again later")
	}
	return volant.Invalidf("registry %s answers %d%s", reg, e.StatusCode, said(e)).WithRemedy("check the image's name")
}

// said is the registry's own message, short and clean enough to be shown.
func said(e *transport.Error) string {
	for _, d := range e.Errors {
		m := strings.Map(func(r rune) rune {
			if unicode.IsControl(r) || !unicode.IsPrint(r) {
				return -1
			}
			return r
		}, d.Message)
		if m != "" {
			return ": " + m[:min(len(m), 200)]
		}
	}
	return ""
}

// unsafe explains why a registry's certificate is not trusted; nil for other errors.
func (f *fetcher) unsafe(err error) error {
	reg := f.ref.Registry
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	switch {
	case errors.As(err, &authority):
		return volant.Errorf(volant.ErrForbidden, "the certificate of registry %s is by an authority that is not known here", reg).
			WithRemedy("add that authority's certificate to the system's (update-ca-certificates) and restart the server")
	case errors.As(err, &name):
		return volant.Errorf(volant.ErrForbidden, "the certificate of registry %s is for another name", reg).
			WithRemedy("use the name that its certificate has")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return volant.Errorf(volant.ErrForbidden, "the certificate of registry %s has expired, or the clock here is wrong", reg).
			WithRemedy("renew it; check the time with `date`")
	case errors.As(err, &invalid):
		return volant.Errorf(volant.ErrForbidden, "the certificate of registry %s is not valid: %v", reg, invalid).WithRemedy("renew it")
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return volant.Errorf(volant.ErrForbidden, "registry %s does not speak TLS", reg).
			WithRemedy("give it a certificate; or the server's operator lists it in image.insecure_registries")
	case errors.As(err, &alert):
		return volant.Errorf(volant.ErrUnavailable, "registry %s refuses to speak TLS with us: %v", reg, alert).WithRemedy("check its certificate and its settings of TLS")
	}
	return nil
}

// unreachable explains what the network says.
func (f *fetcher) unreachable(err error) error {
	reg := f.ref.Registry
	var dns *net.DNSError
	var network net.Error
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return volant.Errorf(volant.ErrUnavailable, "no host has the name of registry %s", reg).WithRemedy("check the name, and the server's DNS")
	case errors.As(err, &dns):
		return volant.Errorf(volant.ErrUnavailable, "the name of registry %s cannot be looked up: %s", reg, dns.Err).WithRemedy("check the server's DNS")
	case errors.Is(err, syscall.ECONNREFUSED):
		return volant.Errorf(volant.ErrUnavailable, "nothing listens at registry %s", reg).WithRemedy("check its name and port, and that it runs")
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return volant.Errorf(volant.ErrUnavailable, "registry %s does not answer within %s", reg, connectWithin).
			WithRemedy("check its name and port, and that no firewall is in between; if it works from your own machine, deploy with --local")
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return volant.Errorf(volant.ErrUnavailable, "there is no way to registry %s", reg).WithRemedy("check the server's network; if it works from your own machine, deploy with --local")
	}
	return volant.Errorf(volant.ErrUnavailable, "registry %s: %v", reg, err).WithRemedy("try again; check the image's name")
}
