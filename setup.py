"""Packaging. The wheel carries what mim looks for under ``mmpoolformer/.mim``."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
MIM_FILES = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Copy mim's files into the build tree only: in the source tree they would be found twice."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / 'mmpoolformer' / '.mim'
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in MIM_FILES:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns('__pycache__')
                shutil.copytree(ROOT / name, target / name, ignore=ignored)
            else:
                shutil.copy2(ROOT / name, target / name)


def read_version() -> str:
    scope = {}
    exec((ROOT / 'mmpoolformer' / 'version.py').read_text(), scope)
    return scope['__version__']


setup(
    name='mmpoolformer',
    version=read_version(),
    description='PoolFormer backbones for OpenMMLab detection and segmentation',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10,<3.13',
    packages=find_packages(include=['mmpoolformer', 'mmpoolformer.*']),
    package_data={'mmpoolformer.ops': ['measured.json']},
    install_requires=['torch>=2.1'],
    # mmengine, mmcv and the toolboxes exist under two sets of distribution names with the
    # same import names; requiring one set would install it over the other.
    extras_require={
        'maintained': [
            'onedl-mmengine>=0.10.12',
            'onedl-mmcv>=2.3.6',
            'onedl-mmdetection>=3.5.1',
            'onedl-mmsegmentation>=1.4.2',
        ],
        'classic': [
            'mmengine>=0.10.3',
            'mmcv>=2.1.0,<2.2.0',
            'mmdet>=3.3.0',
            'mmsegmentation>=1.2.2',
        ],
        'weights': ['timm', 'huggingface_hub', 'safetensors'],
        # Beside an OpenCV that is there already: pip install --no-deps grad-cam ttach
        'explain': ['grad-cam'],
        'convert': ['globox>=2.9'],
        'docs': ['mkdocs-material>=9.8', 'mkdocstrings[python]>=1.0'],
        'export': [
            'onnx>=1.18',
            'onnxruntime>=1.22',
            'onnxscript>=0.7',
            'openvino>=2025.4',
            'nncf>=3.0',
        ],
        'digits': ['rich', 'scikit-image', 'scikit-learn', 'opencv-python', 'pycocotools'],
    },
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)
